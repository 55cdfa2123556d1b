"""Run every command of the papers' pages, from downloads to the table, as one who has the GPUs would (`make rehearse`).

    python benchmarks/rehearse.py --out runs/rehearsal
    python benchmarks/rehearse.py --recipe r1-aqa --recipe sari --out runs/rehearsal

The commands are read from `docs/papers/*.md` and run in a folder a page: builders on small files in the published
formats, training at the profiles `paper`, `one-gpu` and `24gb` from random models in the layout of the released files,
evaluation, the paper's table. Everything is as published but for `rehearsal.reductions.REDUCTIONS`, which is printed
first; the settings that each run recorded are compared with the published recipe. The result is `OUT/rehearsal.json`
and a table; exit code 1 if any command failed. Finished commands are kept: the same command again goes on where it
stopped, `--again` starts anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rehearsal.page_commands import PAGES, pages, recipes_of

HERE = Path(__file__).parent
TABLES, HUB_CACHE, PREPARED, DONE, RESULT = "tables", "hub-cache", "prepared", "commands.jsonl", "page.json"
"""Folder of the sets of the papers' tables, as the pages name it; cache of models; marks of a page's folder."""
Row = dict[str, Any]


def offline_environment(out: Path) -> dict[str, str]:
    """The environment of all commands: models come from the cache of the rehearsal, and nothing is fetched."""
    programs = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "HF_HOME": str(out / HUB_CACHE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def prepare(folder: Path) -> None:
    """Put the downloads that the pages ask for into a new folder: data sets, sets of the tables, models."""
    sys.path.append(str(HERE.parent / "tests"))  # its small files in the published formats
    from rehearsal.released_files import write_folders

    from earwise.apps.paper_tables.fixtures import write_fixtures
    from published_files import write_downloads

    if (folder / PREPARED).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_downloads(folder)
    write_fixtures(folder / TABLES, rows=2)
    write_folders(folder)
    (folder / PREPARED).touch()


def run_one_page(page: str, recipes: Sequence[str], out: Path, address: str) -> None:
    """Run one page in this process and its forks, and write its rows to `RESULT`; see `running.run_page`."""
    prepare(out / page)
    from rehearsal.running import import_all, run_page

    from earwise.files import write_json

    import_all()
    write_json(out / page / RESULT, run_page(page, recipes, out / page, address))


def rehearse(out: Path, recipes: Sequence[str], jobs: int) -> Row:
    """Run the pages of some recipes, each in a process of its own.

    Args:
        out: Folder for the result, and a folder a page.
        recipes: Names of the recipes; none for all.
        jobs: Pages that run at the same time.
    Returns:
        The content of rehearsal.json.
    """
    from baselines.timing import machine
    from gpu_day import git_commit
    from rehearsal.released_files import write_hub_cache
    from rehearsal.services import language_model_server
    from rehearsal.summary import summarize

    from earwise.files import write_json

    started = time.perf_counter()
    wanted = {page: [name for name in recipes_of(page) if not recipes or name in recipes] for page in pages()}
    wanted = {page: names for page, names in wanted.items() if names}
    out.mkdir(parents=True, exist_ok=True)
    if not (out / HUB_CACHE).exists():
        write_hub_cache(out / HUB_CACHE)
    for page in wanted:
        (out / page / RESULT).unlink(missing_ok=True)
    with language_model_server() as address, ThreadPoolExecutor(jobs) as pool:

        def run(page: str) -> None:
            words = ["--page", page, "--address", address, "--out", str(out)]
            words += [word for name in wanted[page] for word in ("--recipe", name)]
            subprocess.run([sys.executable, __file__, *words], env=offline_environment(out), check=True)

        list(pool.map(run, wanted))
    rows = [row for page in wanted for row in json.loads((out / page / RESULT).read_text())]
    result = summarize(rows, {"machine": machine(), **git_commit()}, time.perf_counter() - started)
    write_json(out / "rehearsal.json", result)
    return result


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rehearsal"))
    names = [name for page in pages() for name in recipes_of(page)]
    parser.add_argument("--recipe", action="append", choices=names, help="run only this recipe; can be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="pages that run at the same time (default: 2)")
    parser.add_argument("--again", action="store_true", help="run everything anew")
    parser.add_argument(
        "--record", action="store_true", help="keep the result in benchmarks/results and the documentation"
    )
    parser.add_argument("--page", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """The command line; exit code 1 if a command of a page failed."""
    arguments = parse(words)
    out = arguments.out.resolve()
    if arguments.page:
        run_one_page(arguments.page, arguments.recipe, out, arguments.address)
        return 0
    from rehearsal.reductions import REDUCTIONS
    from rehearsal.summary import markdown, record

    if arguments.again:
        for path in out.glob(f"*/{PREPARED}"):
            shutil.rmtree(path.parent)
    print("smaller than published, and nothing else:")
    print("\n".join(f"  {name}: {text}" for name, text in REDUCTIONS.items()), flush=True)
    result = rehearse(out, arguments.recipe or [], arguments.jobs)
    print("\n".join(markdown(result)))
    if arguments.record:
        record(result, HERE / "results" / "rehearsal.json", PAGES / "rehearsal.md")
    rows = [*result["trainings"], *result["commands"]]
    failed = sum(not row["ok"] for row in rows)
    minutes = f"{result['seconds'] / 60:.1f} minutes, " if result["seconds"] else ""
    print(f"{len(rows)} commands, {minutes}{result['cpu_seconds']:.0f} CPU seconds, {failed} failed")
    print(out / "rehearsal.json")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
