"""From a folder of your own sounds to a model trained on them, and a measurement with and without the audio.

    python examples/own_sounds.py FOLDER OUT     (FOLDER: one subfolder of clips per class, or a manifest.jsonl)

The questions have distractors that a model without audio cannot guess from, and are split by recording. A short SFT run
follows; then the held-out questions are asked with the audio, and with silence in its place.
"""

import sys
from pathlib import Path

import yaml

import earwise
from earwise.data import manifest
from earwise.datasets.labels import collection
from earwise.datasets.labels.clip_questions import ClipQuestionOptions, build_clip_questions

RECIPE = {
    "recipe": "own-sounds",
    "stages": [
        {
            "kind": "sft",
            "data": {"mixture": [{"manifest": "train.jsonl"}], "styles": {"answer": 1.0}},
            "clips_per_step": 8,
            "max_steps": 20,
            "trainable": {"decoder": "lora", "lora": {"r": 8, "lora_alpha": 16}},
            "optimizer": {"learning_rate": 3e-4, "connector_learning_rate": 1e-5},
        }
    ],
    "eval": [{"manifest": "val.jsonl", "style": "answer", "max_new_tokens": 16}],
}


def main(folder: Path, out: Path, steps: int = 20) -> dict[str, object]:
    """Build, train, measure; returns accuracy with its n, and the accuracy with silence in place of the audio."""
    clips, root = collection.load(folder)
    for split in ("train", "val"):
        options = ClipQuestionOptions(seed=1, tasks=("recognition",), split=split)
        rows = build_clip_questions(clips, root, options)
        manifest.write(out / f"{split}.jsonl", rows)
    recipe = out / "own-sounds.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    result = earwise.train(recipe, overrides={"stages.0.max_steps": steps}, out=out / "run", notify=print)
    (evaluation,) = result.evaluations
    return evaluation.after


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
