"""Score against token delay: XS-CoT's arms on the embedded model, profile `cpu-delay`, at equal steps; resumable.

    python benchmarks/compress.py

Parts in order: ten phrases in German, French and Japanese, spoken by two voices to train on and by a third one that is
held out (`earwise build xs-cot`) -> one start on whole chains (`chains`), shared -> from there the chain as it is
(`chain`), stubs (`implicit`), nothing (`fully-implicit`); `direct` has no chain and as many steps in all -> held-out
score, delay and loss on the answers alone, for every arm -> one page and `compress.json` in runs/compress, where the
profile looks for its data. The paper judges by a language model; here an answer is right if it is the row's own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recipes import RECIPES, bring, score, stage_row
from ways.timing import machine

from earwise.algorithms import chain_compression
from earwise.apps.recipe_eval import evaluate_entry, evenly_spaced
from earwise.audio import decode
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.config.stages import CompressConfig
from earwise.data import manifest
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.evaluate.results import read_run
from earwise.files import read_log, write_json
from earwise.forest import TokenPath
from earwise.models.base import AudioLM, load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.report import write_report
from earwise.train.batches import build_micro_batches
from earwise.train.policy import Policy
from earwise.train.stages.compression_schedule import split_reply
from earwise.types import Example

RECIPE, PROFILE = RECIPES / "xs-cot.yaml", "cpu-delay"
OUT = Path("runs/compress")  # where the recipe says that its data are
VOICES = ("espeak", "espeak:f2", "espeak:m3")
PHRASES = 10
# A closed set that is heard badly is still a closed set: no clip is thrown out for what the recogniser made of it.
SPEAK = ("--limit", str(PHRASES), "--max-error", "9", "--no-check")
START = "chains"
ARMS = ("direct", "chain", "implicit", "fully-implicit")
MEASURED, FIGURES = Path("eval") / "after-0", "figures.json"
DELAY_KEYS = ("progress", "chain_tokens", "delay", "answered")


def speak() -> None:
    """Every voice's rows; what is spoken already is kept."""
    for voice in VOICES:
        folder = OUT / "data" / voice.removeprefix("espeak:")
        words = ("build", "xs-cot", *SPEAK, "--voice", voice, "--out", str(folder))
        subprocess.run([sys.executable, "-c", "from earwise.cli import main; main()", *words], check=True)


def settings(arm: str) -> tuple[str, ...]:
    """What changes the arm's recipe so that all of them have equally many steps, from one start where it can be one."""
    if arm == "direct":
        whole = load_recipe(RECIPE, profile=PROFILE)
        return (f"stages.chains.max_steps={sum(stage.max_steps for stage in whole.stages)}",)
    return (f"model.name={OUT / START}", *(() if arm == "chain" else ("stages.chains=null",)))


def train(name: str) -> str | None:
    """One run to its end; see `recipes.bring`."""
    arm, changed = ("chain", ()) if name == START else (name, settings(name))
    recipe = load_recipe(RECIPE, profile=PROFILE, arm=arm, overrides=changed)
    options = ("--profile", PROFILE, "--arm", arm, "--out", str(OUT / name))
    return bring(OUT / name, recipe, (str(RECIPE), *options, *changed), measured=False)


# The loss on answers -------------------------------------------------------------------------------------------------


def spoken_before(example: Example, recipe: Recipe, model: AudioLM) -> str:
    """What stands before a row's answer in this arm: its chain as the arm ends up with it, with head and mark."""
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
    """Mean nats a token of the rows' answers and end marks, each after its sound and the arm's own chain."""
    policy, encoder_cache = Policy(model), EncoderCache(model)
    trees, waveforms = [], {}
    for number, row in enumerate(rows):
        waveforms[number] = decode(row.audio_paths[0], model.spec.sample_rate, max_s=model.spec.max_s)
        turns = prompt_turns(row, recipe.eval[0].style)
        said = model.tokenizer.encode(spoken_before(row, recipe, model))
        before = TokenPath(tuple(said), (False,) * len(said), (-1,) * len(said))
        answer = completion_path([*model.tokenizer.encode(row.answer[0]), model.eos_ids[0]])
        trees.append([conversation_path(model, turns, [number], [len(waveforms[number])], generate=True) + before + answer])
    total = count = 0.0
    for micro_batch in build_micro_batches(model, encoder_cache, trees, waveforms, 1024):
        mask = micro_batch.forest.loss_mask
        total -= float(policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)[mask].sum())
        count += int(mask.sum())
    return {"nats_a_token": round(total / count, 4), "tokens": int(count), "rows": len(rows)}


# What is written -----------------------------------------------------------------------------------------------------


def described(name: str) -> dict[str, Any]:
    """One trained run: its stages, the course of its delay, its held-out scores, the loss on held-out answers."""
    folder = OUT / name
    if (folder / FIGURES).exists():
        found: dict[str, Any] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        return found
    recipe = check_recipe(json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["recipe"], str(folder))
    log = [row for row in read_log(folder / "metrics.jsonl") if "step" in row]
    stages = []
    for number, stage in enumerate(recipe.stages):
        label = stage.name or stage.kind
        stages.append(stage_row(label, stage.kind, [row for row in log if row["stage"] == f"stage-{number}-{label}"]))
    course = [
        {"step": row["step"]} | {key: round(row[f"compress/{key}"], 3) for key in DELAY_KEYS}
        for row in log
        if "compress/delay" in row
    ]
    model, one = load(str(folder / "final")), recipe.eval[0]
    rows = evenly_spaced(manifest.read(Path(one.manifest)), one.limit)
    found = {"stages": stages, "delay_over_training": course, "answer_loss": answer_loss(model, recipe, rows)}
    if name != START:
        at = folder / MEASURED
        evaluate_entry(one, Path(), LocalEngine(model), at, seed=recipe.seed, blind=("silence",), notify=tell)
        after = read_run(at, name)
        found |= {"n": after.metrics["n"], "cut": after.metrics["cut"]["share"]}
        found["held_out"] = {kind: score(after, kind) for kind in ("official", "lenient")}
    write_json(folder / FIGURES, found)
    return found


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr)


def main() -> int:
    """Run what is not finished, then sum up; 2 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="also write the figures here")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "arms": {}}
    try:
        speak()
        for name in (START, *arguments.arms):
            tell(f"== {name}")
            if reason := train(name):
                tell(f"{name}: failed ({reason}); the same command tries it again")
                return 2
            result["arms"][name] = described(name)
            for path in (OUT / "compress.json", *([arguments.keep] if arguments.keep else [])):
                write_json(path, result)
        runs = [read_run(OUT / arm / MEASURED, arm) for arm in arguments.arms]
        logs = [OUT / name / "metrics.jsonl" for name in (START, *arguments.arms)]
        write_report(OUT / "report.html", runs, logs, title="XS-CoT on the embedded model: score against delay")
    except EarwiseError as error:
        tell(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        tell("interrupted; finished work is kept, the same command goes on from there")
        return 130
    print(json.dumps(result["arms"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
