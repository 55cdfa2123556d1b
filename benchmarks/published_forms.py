"""Real labelled clips in the published forms of all benchmarks, to try every task with a model.

    python benchmarks/published_forms.py AUDIO OUT [--rows N]

AUDIO is a folder with `manifest.jsonl`, one object a clip: `path`, `labels` (a list), `category` (sound, music or
speech), `split`, and `text` where it is known what is said. Held-out clips (`split: val`) are used. OUT gets the files
that `earwise table PAPER --list` names, with links to the clips, and `FIXTURES.txt`: the questions are made here, from
the labels, and are not the benchmarks'. Then:

    earwise evaluate --task mmau=OUT/mmau/mmau-test-mini.json --task mmar=OUT/mmar/MMAR-meta.json --out runs/forms
"""

import argparse
import json
from pathlib import Path

from earwise.apps.paper_tables.fixtures import LabelledClip, write_fixtures


def labelled_clips(folder: Path) -> list[LabelledClip]:
    """The held-out clips of a folder with one label each; of speech those of which the words are known."""
    clips = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = str(row.get("text") or "")
        if row["split"] != "val" or len(row["labels"]) != 1 or (row["category"] == "speech" and not text):
            continue
        spoken = str(row.get("emotion") or row.get("language") or row["labels"][0])
        label = spoken if row["category"] == "speech" else str(row["labels"][0])
        clips.append(LabelledClip(folder / row["path"], label.replace("_", " "), row["category"], text))
    return clips


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=8, help="rows of each set and category")
    arguments = parser.parse_args()
    print(write_fixtures(arguments.out, labelled_clips(arguments.audio), rows=arguments.rows))


if __name__ == "__main__":
    main()
