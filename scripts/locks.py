"""Locked versions of everything that is installed: renew them, resolve the newest and the oldest, tell what differs.

`locks/base.txt` holds what earwise itself installs, `serve.txt` and `docs.txt` that and the extra of the same name, and
`dev.txt` that and all extras which the tests use. The locks hold for Python 3.11 to 3.14 on every platform (by
environment markers), with the hashes of every file. torch stands in `locks/torch-cuda.txt`, with the
CUDA libraries that only its build for GPUs needs: machines without a GPU install a CPU build of the same version.

    python scripts/locks.py renew --uv UV [--torch VERSION]        write locks/ anew
    python scripts/locks.py resolve newest|oldest --uv UV          print what to install into the environment
    python scripts/locks.py differences                            of the environment that runs this, from locks/dev.txt

Needs nothing but Python and, for the first two, uv. Called by the Makefile.
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
EXTRAS = {
    "dev": ("serve", "track", "data", "hub", "eval", "quantize", "dev"),
    "base": (),
    "serve": ("serve",),
    "docs": ("docs",),
}
"""Lock -> extras it is made of; the first is the largest, and the others take its versions."""
TORCH = "torch-cuda"
OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
"""torch itself and what only its CUDA build needs."""
BUILD = "setuptools>=77"
"""What `pyproject.toml` is built with, so that it comes from the lock too."""


def main() -> int:
    """Run the command that is named; returns the exit code."""
    parser = argparse.ArgumentParser(description="Locked versions of everything that is installed.")
    parser.add_argument("command", choices=("renew", "resolve", "differences"))
    parser.add_argument("which", nargs="?", choices=("newest", "oldest"), default="newest")
    parser.add_argument("--uv", default="uv", help="Path of uv.")
    parser.add_argument("--torch", help="Version of torch to lock.  [default: the one that is locked]")
    options = parser.parse_args()
    if options.command == "renew":
        renew(options.uv, options.torch or locked_torch())
    elif options.command == "resolve":
        print(resolve(options.uv, options.which))
    else:
        print(
            "\n".join(differences(installed(), locked("dev") | locked(TORCH))) or "all versions are those of the lock"
        )
    return 0


def renew(uv: str, torch: str) -> None:
    """Write all locks with the newest versions that pyproject.toml allows.

    Args:
        uv: Path of uv.
        torch: Version of torch.
    """
    LOCKS.mkdir(exist_ok=True)
    lines = [f"torch=={torch}", BUILD]
    constraints: list[str] = []
    for name, extras in EXTRAS.items():
        text = compiled(uv, extras, lines, "--universal", "--python-version", "3.11", "--generate-hashes", *constraints)
        blocks = blocks_of(text)
        own = [block for block in blocks if not OF_TORCH.match(block)]
        (LOCKS / f"{name}.txt").write_text("".join(own), encoding="utf-8")
        if not constraints:
            cuda = [block for block in blocks if OF_TORCH.match(block)]
            (LOCKS / f"{TORCH}.txt").write_text("".join(cuda), encoding="utf-8")
            constraints = ["--constraint", str(LOCKS / f"{name}.txt"), "--constraint", str(LOCKS / f"{TORCH}.txt")]
        print(f"locks/{name}.txt: {len(own)} packages", file=sys.stderr)


def resolve(uv: str, which: str) -> str:
    """Requirements of the newest or the oldest versions that pyproject.toml allows, for the Python that runs this.

    Args:
        uv: Path of uv.
        which: `newest`, or `oldest` for the lower bounds of what pyproject.toml names (the newest of what that needs).
    """
    resolution = {"newest": "highest", "oldest": "lowest-direct"}[which]
    return compiled(uv, EXTRAS["dev"], [], "--python", sys.executable, "--resolution", resolution)


def compiled(uv: str, extras: tuple[str, ...], lines: list[str], *options: str) -> str:
    """What uv makes of pyproject.toml and further requirements: no header, no address of an index."""
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--upgrade"]
    command += ["--no-emit-find-links", *options, *(part for extra in extras for part in ("--extra", extra))]
    result = subprocess.run(
        [*command, "pyproject.toml", "-"], input="\n".join(lines), cwd=ROOT, text=True, capture_output=True
    )
    if result.returncode:
        raise SystemExit(f"uv finds no versions that fit together:\n{result.stderr}")
    return result.stdout


def blocks_of(text: str) -> list[str]:
    """The text of each requirement, its hashes included.

    >>> blocks_of("a==1 \\\\\\n    --hash=x\\nb==2\\n")
    ['a==1 \\\\\\n    --hash=x\\n', 'b==2\\n']
    """
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, flags=re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Package -> its locked versions; there may be several, by Python version."""
    versions: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE):
        versions.setdefault(package, set()).add(version)
    return versions


def locked_torch() -> str:
    """The version of torch in the lock."""
    (version,) = locked(TORCH)["torch"]
    return version


def installed() -> dict[str, str]:
    """Package -> version, of the environment that runs this; a local version (`+cpu`) is left out."""
    return {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version.partition("+")[0]
        for found in distributions()
    }


def differences(versions: dict[str, str], lock: dict[str, set[str]]) -> list[str]:
    """A line for each package whose version is none of the locked ones.

    >>> differences({"peft": "0.22.0", "trl": "1.16.0"}, {"peft": {"0.21.2"}, "trl": {"1.16.0"}})
    ['peft 0.22.0, locked 0.21.2']
    """
    return [
        f"{package} {versions[package]}, locked {' or '.join(sorted(lock[package]))}"
        for package in sorted(versions.keys() & lock.keys())
        if versions[package] not in lock[package]
    ]


if __name__ == "__main__":
    raise SystemExit(main())
