"""From a folder of your own sounds to a model that was trained on them, and the proof: no command line needed.

    python examples/own_sounds.py FOLDER OUT     (FOLDER: one subfolder of clips per class, or a manifest.jsonl)

Questions are built with distractors that a deaf model cannot guess from, split by recording; a short SFT run follows;
then the held-out questions are asked with the sound, and under silence.
"""

import sys
from pathlib import Path

import earwise
from earwise.apps.recipe_eval import headline, measure
from earwise.config.recipe import EvalConfig, check_recipe
from earwise.data import manifest
from earwise.datasets.labels import clip_questions, collection
from earwise.train import run


def main(folder: Path, out: Path, steps: int = 20) -> dict[str, object]:
    """Build, train, measure; returns accuracy with its n, its control under silence and chance."""
    clips, root = collection.load(folder)
    for split in ("train", "val"):
        rows = clip_questions.build(clips, root=root, seed=1, tasks=("recognition",), split=split)
        manifest.write(out / f"{split}.jsonl", rows)
    recipe = check_recipe(
        {
            "recipe": "own-sounds",
            "stages": [
                {
                    "kind": "sft",
                    "data": {"mixture": [{"manifest": "train.jsonl"}], "styles": {"answer": 1.0}},
                    "clips_per_step": 8,
                    "max_steps": steps,
                    "trainable": {"decoder": "lora", "lora": {"r": 8, "lora_alpha": 16}},
                    "optimizer": {"learning_rate": 3e-4, "connector_learning_rate": 1e-5},
                }
            ],
        },
        "own_sounds.py",
    )
    final = run.start(recipe, out / "run", out, notify=print)
    engine = earwise.LocalEngine(earwise.load_model(str(final)))
    asked = EvalConfig(manifest="val.jsonl", style="answer", max_new_tokens=16)
    return headline(measure(asked, out, engine, out / "after", seed=1, notify=print))


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
