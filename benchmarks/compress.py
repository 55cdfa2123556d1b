"""Score against token delay of XS-CoT's variants on the embedded model, profile `cpu-delay`, at equal steps; resumable.

    python benchmarks/compress.py

1. Ten phrases in German, French and Japanese are spoken by two voices for training and a third one that is held out
   (`earwise build xs-cot`).
2. One model is trained on whole chains (`chains`), from which the arms start: the chain unchanged (`chain`), shortened
   sentences (`implicit`), or no chain (`fully-implicit`). `direct` never has a chain, and as many steps in all.
3. For every arm: held-out score, delay, and the loss on the answers alone.

The results are a page and `compress.json` in runs/compress, where the profile looks for its data. The paper
(arXiv:2504.20835) uses a language model as judge; here an answer is correct if it is the row's own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from baselines.timing import machine
from recipes import RECIPES, run_to_end, score, stage_row

from earwise.algorithms import chain_compression
from earwise.apps.recipe_eval import evaluate_entry, evenly_spaced
from earwise.audio import decode
from earwise.config.kinds.compress import CompressConfig
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.data import manifest
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.evaluation.results import read_run
from earwise.files import read_log, write_json
from earwise.forest import TokenPath
from earwise.models.base import AudioLM, load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.report import write_report
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy
from earwise.training.stages.compression_schedule import split_reply
from earwise.types import Example

RECIPE, PROFILE = RECIPES / "xs-cot.yaml", "cpu-delay"
OUT = Path("runs/compress")  # where the recipe looks for its data
VOICES = ("espeak", "espeak:f2", "espeak:m3")
PHRASES = 10
# The phrases are a closed set, so clips that the recogniser misunderstands are kept.
SPEAK = ("--limit", str(PHRASES), "--max-error", "9", "--no-check")
START = "chains"
ARMS = ("direct", "chain", "implicit", "fully-implicit")
EVALUATION, RESULTS = Path("eval") / "after-0", "figures.json"
DELAY_KEYS = ("progress", "chain_tokens", "delay", "answered")


def synthesize_speech() -> None:
    """Build the rows of every voice; finished ones are kept."""
    for voice in VOICES:
        folder = OUT / "data" / voice.removeprefix("espeak:")
        arguments = ("build", "xs-cot", *SPEAK, "--voice", voice, "--out", str(folder))
        subprocess.run([sys.executable, "-c", "from earwise.cli import main; main()", *arguments], check=True)


def overrides_of(arm: str) -> tuple[str, ...]:
    """Overrides of the recipe that give all arms equally many steps, from the shared model if they start there."""
    if arm == "direct":
        recipe = load_recipe(RECIPE, profile=PROFILE)
        return (f"stages.chains.max_steps={sum(stage.max_steps for stage in recipe.stages)}",)
    return (f"model.name={OUT / START}", *(() if arm == "chain" else ("stages.chains=null",)))


def train(name: str) -> str | None:
    """Run one training to its end; see `recipes.run_to_end`."""
    arm, overrides = ("chain", ()) if name == START else (name, overrides_of(name))
    recipe = load_recipe(RECIPE, profile=PROFILE, arm=arm, overrides=overrides)
    options = ("--profile", PROFILE, "--arm", arm, "--out", str(OUT / name))
    return run_to_end(OUT / name, recipe, (str(RECIPE), *options, *overrides), evaluates=False)


# The loss on answers -------------------------------------------------------------------------------------------------


def reply_before_answer(example: Example, recipe: Recipe, model: AudioLM) -> str:
    """The text before the answer of a row in an arm: its chain at the end of training, with head and marker.

    Args:
        example: The row.
        recipe: Recipe of the arm.
        model: Model whose tokenizer counts tokens.
    """
    if recipe.eval[0].style != "xs-cot":
        return ""
    head, chain, tail = split_reply(example, "xs-cot")
    last = recipe.stages[-1]
    if isinstance(last, CompressConfig):
        stubs = chain_compression.StubFormat(last.stub_groups, last.words_per_group, last.ellipsis, last.order)
        count = chain_compression.count_sentences(chain, example.language)
        chain = chain_compression.compress_chain(
            chain, count, stubs, language=example.language, count=lambda text: len(model.tokenizer.encode(text))
        )
    return head + chain + tail[: tail.index(example.answer[0])]


@torch.inference_mode()
def answer_loss(model: AudioLM, recipe: Recipe, rows: Sequence[Example]) -> dict[str, float]:
    """Mean loss in nats per token of answers and end tokens, each after its clip and the arm's own chain.

    Args:
        model: The trained model.
        recipe: Recipe of the arm.
        rows: Held-out rows.
    """
    policy, encoder_cache = Policy(model), EncoderCache(model)
    trees, waveforms = [], {}
    for number, row in enumerate(rows):
        waveforms[number] = decode(row.audio_paths[0], model.spec.sample_rate, max_s=model.spec.max_s)
        turns = prompt_turns(row, recipe.eval[0].style)
        reply_ids = model.tokenizer.encode(reply_before_answer(row, recipe, model))
        reply = TokenPath(tuple(reply_ids), (False,) * len(reply_ids), (-1,) * len(reply_ids))
        answer = completion_path([*model.tokenizer.encode(row.answer[0]), model.eos_ids[0]])
        trees.append(
            [conversation_path(model, turns, [number], [len(waveforms[number])], generate=True) + reply + answer]
        )
    total = count = 0.0
    for micro_batch in build_micro_batches(model, encoder_cache, trees, waveforms, 1024):
        mask = micro_batch.forest.loss_mask
        total -= float(policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)[mask].sum())
        count += int(mask.sum())
    return {"nats_a_token": round(total / count, 4), "tokens": int(count), "rows": len(rows)}


# Results -----------------------------------------------------------------------------------------------------


def summarize_run(name: str) -> dict[str, Any]:
    """Results of a trained run: stages, delay over training, held-out scores, loss on held-out answers.

    They are stored in the run's folder and read from there the next time.
    """
    folder = OUT / name
    if (folder / RESULTS).exists():
        stored: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return stored
    recipe = check_recipe(json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["recipe"], str(folder))
    log = [row for row in read_log(folder / "metrics.jsonl") if "step" in row]
    stages = []
    for number, stage in enumerate(recipe.stages):
        label = stage.label
        stages.append(stage_row(label, stage.kind, [row for row in log if row["stage"] == f"stage-{number}-{label}"]))
    delay_course = [
        {"step": row["step"]} | {key: round(row[f"compress/{key}"], 3) for key in DELAY_KEYS}
        for row in log
        if "compress/delay" in row
    ]
    model, entry = load(str(folder / "final")), recipe.eval[0]
    rows = evenly_spaced(manifest.read(Path(entry.manifest)), entry.limit)
    results = {"stages": stages, "delay_over_training": delay_course, "answer_loss": answer_loss(model, recipe, rows)}
    if name != START:
        folder_of_eval = folder / EVALUATION
        evaluate_entry(
            entry, Path(), LocalEngine(model), folder_of_eval, seed=recipe.seed, blind=("silence",), notify=notify
        )
        after = read_run(folder_of_eval, name)
        results |= {"n": after.metrics["n"], "cut": after.metrics["cut"]["share"]}
        results["held_out"] = {kind: score(after, kind) for kind in ("official", "lenient")}
    write_json(folder / RESULTS, results)
    return results


def notify(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr)


def main() -> int:
    """Run what is not finished, then write the results. Exit code 2 means that a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="also write the results to this file")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "arms": {}}
    try:
        synthesize_speech()
        for name in (START, *arguments.arms):
            notify(f"== {name}")
            if reason := train(name):
                notify(f"{name}: failed ({reason}); the same command tries again")
                return 2
            result["arms"][name] = summarize_run(name)
            for path in (OUT / "compress.json", *([arguments.keep] if arguments.keep else [])):
                write_json(path, result)
        runs = [read_run(OUT / arm / EVALUATION, arm) for arm in arguments.arms]
        logs = [OUT / name / "metrics.jsonl" for name in (START, *arguments.arms)]
        write_report(OUT / "report.html", runs, logs, title="XS-CoT on the embedded model: score against delay")
    except EarwiseError as error:
        notify(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        notify("interrupted; finished work is kept, and the same command continues")
        return 130
    print(json.dumps(result["arms"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
