"""One SFT step in ReasonAQA's shape, a clip with ten questions: earwise and transformers' `Trainer`, in turn.

    python benchmarks/sft_step.py --out benchmarks/results/sft_step.json

`trainer-padded`   transformers' Trainer with a collator that adds the audio (`baselines/collator.py`): every question
                   is a row with its own copy of the clip, padded to 30 s by the feature extractor, as usual.
`trainer-trimmed`  The same with clips padded to the longest of the batch (embedded model only: Qwen2-Audio's class
                   requires the full window).
`earwise`          The loop of `earwise train`, with one token tree per clip.

All train the same parameters (LoRA on the decoder, the whole connector) from the same weights on the same files in the
same order: one clip and its questions per optimizer step, AdamW, gradient clipping, a clip that is not cached. A round
runs each of them once; the first step warms up, the others are timed, reading the files included. Padding is masked in
the encoder, so losses and gradients can be compared in the same runs that are timed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
import transformers
from baselines import precision
from baselines.collator import ClipQuestion, Collator, as_batched_hf_model
from baselines.hf_models import HFModel
from baselines.models import load_benchmark_model, peft_lora_forward, perturb, take_gradients, trained_parameters
from baselines.timing import PhaseTimer, alternate_phases, machine, matmul_gflops, medians, peak_memory, ratio
from baselines.workload import clip, examples
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from earwise.algorithms.losses import sft_loss
from earwise.audio import decode
from earwise.config.stages import DataConfig, OptimizerConfig, SftConfig, Source
from earwise.data.mixture import Mixture
from earwise.errors import ConfigError
from earwise.files import read_log, write_json
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.precision.compute import COMPUTE_CHOICES, set_compute
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.training import trainer as earwise_trainer
from earwise.training.batches import build_micro_batches, group_by_clips
from earwise.training.clip_loader import ClipLoader
from earwise.training.logging.step_log import LogFiles
from earwise.training.policy import Policy, forest_tolerance
from earwise.training.profiler import Profiler
from earwise.training.stages.sft import SftStage
from earwise.training.stages.stage import StageContext, StageData
from earwise.types import Audio, Example, Text, Turn

IMPLEMENTATIONS = ("trainer-padded", "trainer-trimmed", "earwise")
STYLE = "plain"  # question and options; the answer is the text of an option
SEED = 3
LR = 1e-4
GOAL = 4.0
TOLERANCE = 1e-4


def questions(folder: Path, clips: int, each: int, seconds: float) -> list[Example]:
    """Write clips into a folder and give each some of the bundled questions (which need not fit the clip).

    Args:
        folder: Folder for the clips.
        clips: Number of clips.
        each: Questions per clip.
        seconds: Length of a clip.
    Raises:
        ConfigError: if there are not enough bundled questions.
    """
    rows = examples()
    if clips * each > len(rows):
        raise ConfigError(
            f"{clips} clips with {each} questions are requested, but only {len(rows)} are bundled; use fewer steps"
        )
    clip_rows = list({row.audio_paths[0]: row for row in rows}.values())
    out = []
    for number in range(clips):
        name = f"{number}.wav"
        soundfile.write(folder / name, clip(clip_rows[number], seconds), 16000, subtype="FLOAT")
        for row in rows[number * each : (number + 1) * each]:
            turns = (Turn("user", (Audio(name), Text(row.question))),)
            out.append(Example(f"{number} {row.id}", turns, row.answer, row.choices, root=folder))
    return out


class Questions(Dataset[ClipQuestion]):
    """The examples in the order of earwise's training loop; a clip is read when its row is requested.

    Args:
        model: Model whose tokenizer is used.
        examples: The examples.
        clips: Number of clips.
    """

    def __init__(self, model: AudioLM, examples: Sequence[Example], clips: int) -> None:
        mixture = Mixture([(group_by_clips(examples), 1.0)], SEED)
        self._model = model
        self._rows = [example for _ in range(clips) for example in next(mixture)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> ClipQuestion:
        example, model = self._rows[index], self._model
        waveform = decode(example.audio_paths[0], model.spec.sample_rate)
        prompt = conversation_path(model, prompt_turns(example, STYLE), [0], [len(waveform)], generate=True)
        return ClipQuestion(prompt + answer_path(model, target_text(example, STYLE)), waveform)


def row_loss(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """transformers' own loss: the mean over the answer tokens of the batch."""
    loss: Tensor = ForCausalLMLoss(outputs.logits, labels, vocab_size=outputs.logits.shape[-1])
    return loss


class StepTimes(TrainerCallback):
    """Records the time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time; called by the Trainer."""
        self.times.append(time.perf_counter())


class SftBenchmark:
    """One model and its data, trained from the same weights by each implementation.

    Args:
        model_name: See `load_benchmark_model`.
        folder: Folder for clips and runs.
        steps: Number of timed steps.
        each: Questions per clip.
        seconds: Length of a clip.
    """

    def __init__(self, model_name: str, folder: Path, *, steps: int, each: int, seconds: float) -> None:
        self.folder, self.steps, self.each = folder, steps + 1, each
        self.examples = questions(folder, self.steps, each, seconds)
        self.model = load_benchmark_model(model_name)
        perturb(self.model)
        self.hf_model: HFModel = as_batched_hf_model(self.model)
        self.dataset = Questions(self.model, self.examples, self.steps)
        self.losses: dict[str, list[float]] = {}
        self.phases: list[dict[str, float]] = []
        self.trainer_precision = "float32"
        """In what the Trainer computes; its own setting `bf16` would hold for earwise in this process, too."""
        self._start = {name: value.detach().clone() for name, value in trained_parameters(self.model).items()}
        self._runs = 0

    def run(self, implementation: str, timer: PhaseTimer) -> None:
        """Train from the initial weights; the timer receives the seconds of all steps except the first."""
        with torch.no_grad():
            for name, value in trained_parameters(self.model).items():
                value.copy_(self._start[name])
                value.grad = None
        self._runs += 1
        seconds = self._earwise() if implementation == "earwise" else self._trainer(implementation)
        timer.seconds["steps"] = sum(seconds[1:])

    def collator(self, implementation: str) -> Collator:
        """The collator of one of the Trainer's variants."""
        return Collator(self.hf_model.extractor, self.model.eos_ids[-1], trimmed=implementation == "trainer-trimmed")

    def _trainer(self, implementation: str) -> list[float]:
        losses: list[Tensor] = []

        def compute_loss(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
            losses.append(row_loss(outputs, labels))
            return losses[-1]

        step_times = StepTimes()
        training_arguments = TrainingArguments(
            output_dir=str(self.folder / "trainer"), max_steps=self.steps, per_device_train_batch_size=self.each,
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, seed=SEED,
            train_sampling_strategy="sequential",
            remove_unused_columns=False, save_strategy="no",
            report_to="none", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            self.hf_model.module,
            training_arguments,
            self.collator(implementation),
            self.dataset,
            compute_loss_func=compute_loss,
            callbacks=[step_times],
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        with peft_lora_forward(self.model), precision.autocast(self.trainer_precision):
            trainer.train()
        self.losses[implementation] = [float(loss.detach()) for loss in losses]
        return [stop - start for start, stop in zip([began, *step_times.times], step_times.times, strict=False)]

    def _earwise(self) -> list[float]:
        source = Source(manifest="in memory")
        stage = SftConfig(
            kind="sft", data=DataConfig(mixture=(source,), styles={STYLE: 1.0}), max_steps=self.steps,
            clips_per_step=1, questions_per_clip=self.each, save_steps=10**6,
            optimizer=OptimizerConfig(learning_rate=LR, lr_scheduler_type="constant"),
        )  # fmt: skip
        profiler = Profiler()
        out = self.folder / f"earwise-{self._runs}"
        context = StageContext(
            model=self.model,
            data=StageData([(self.examples, 1.0)]),
            encoder_cache=EncoderCache(self.model, batch_size=1, measure=lambda: profiler.phase("hear")),
            clip_loader=ClipLoader(self.model, long_audio="error", on_bad_row="stop"),
            seed=SEED,
            folder=out,
            profiler=profiler,
        )
        earwise_trainer.Trainer(
            self.model, SftStage(context, stage),
            earwise_trainer.TrainerOptions(
                stage.optimizer, max_steps=self.steps, save_steps=self.steps + 1, profile=True,
                forest_tolerance=forest_tolerance(self.model.module),
            ),
            folder=out, log_files=LogFiles(out / "metrics.jsonl"), encoder_cache=context.encoder_cache,
            profiler=profiler,
        ).train()  # fmt: skip
        rows = read_log(out / "metrics.jsonl")
        self.losses["earwise"] = [row["sft/loss"] for row in rows]
        phase = {key: sum(row.get(key, 0.0) for row in rows[1:]) for key in rows[-1] if key.startswith("phase/")}
        self.phases.append({key.removeprefix("phase/"): value / (len(rows) - 1) for key, value in phase.items()})
        return [row["seconds"] for row in rows]

    @torch.no_grad()
    def one_row(self) -> None:
        """The Trainer's forward pass on one row, padded."""
        batch = self.collator("trainer-padded")([self.dataset[0]])
        batch.pop("labels")
        self.hf_model.module(**batch)

    def gradient_differences(self, implementations: Sequence[str]) -> dict[str, float]:
        """Relative norm of the difference to earwise's gradient on the first clip, for each implementation."""
        rows = [self.dataset[number] for number in range(self.each)]
        earwise = sft_gradient(self.model, rows)
        differences = {}
        for implementation in implementations:
            batch = self.collator(implementation)(rows)
            labels = batch.pop("labels")
            row_loss(self.hf_model.module(**batch), labels).backward()
            gradient = take_gradients(self.model)
            differences[implementation] = float((gradient - earwise).norm() / earwise.norm())
        return differences


def sft_gradient(model: AudioLM, rows: Sequence[ClipQuestion]) -> Tensor:
    """The gradient of one token tree, of rows with the same clip."""
    policy = Policy(model)
    (micro_batch,) = build_micro_batches(
        model, EncoderCache(model), [[row.path for row in rows]], {0: rows[0].waveform}, 10**6
    )
    mask = micro_batch.forest.loss_mask
    logprobs = policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
    sft_loss(logprobs, mask, denominator=float(mask.sum())).loss.backward()
    return take_gradients(model)


def implementations_for(model_name: str) -> list[str]:
    """The implementations that this model can run with."""
    return [
        implementation
        for implementation in IMPLEMENTATIONS
        if implementation != "trainer-trimmed" or model_name == "embedded"
    ]


def run_alone(model_name: str, implementation: str, each: int, seconds: float) -> None:
    """Two steps of one implementation, for measuring its memory."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        SftBenchmark(model_name, Path(folder), steps=1, each=each, seconds=seconds).run(implementation, PhaseTimer())


def measure(model_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All results of one model."""
    implementations, steps, each = implementations_for(model_name), arguments.steps, arguments.questions
    baselines = [implementation for implementation in implementations if implementation != "earwise"]
    with tempfile.TemporaryDirectory() as folder:
        bench = SftBenchmark(model_name, Path(folder), steps=steps, each=each, seconds=arguments.seconds)
        differences = bench.gradient_differences(baselines)
        bench.trainer_precision = precision.choose(arguments.baseline_precision, bench.one_row)
        plan = set_compute(bench.model, arguments.compute)
        runs = alternate_phases(
            {implementation: partial(bench.run, implementation) for implementation in implementations},
            arguments.rounds,
            warm_up=False,
        )
        times = {implementation: phases["steps"] for implementation, phases in runs.items()}
        rows = [bench.dataset[number] for number in range(each)]
    median_seconds = medians(times)
    speedups = {implementation: ratio(times[implementation], times["earwise"]) for implementation in baselines}
    loss_differences = {
        implementation: loss_difference(bench.losses[implementation], bench.losses["earwise"])
        for implementation in baselines
    }
    out: dict[str, Any] = {
        "model": model_name, "clip_s": arguments.seconds, "questions": each, "steps_per_round": steps,
        "rounds": arguments.rounds,
        "precision": {"earwise": str(plan)} | dict.fromkeys(baselines, bench.trainer_precision),
        "examples_per_s": {name: steps * each / seconds for name, seconds in median_seconds.items()},
        "seconds_per_step": {implementation: seconds / steps for implementation, seconds in median_seconds.items()},
        "seconds_in_rounds": times,
        "times_faster_than": speedups,
        "losses": bench.losses,
        "relative_loss_difference": loss_differences,
        "relative_gradient_difference": differences,
        "earwise_phases_s": bench.phases[-1],
        "prompt_and_answer_tokens": [len(row.path.ids) for row in rows],
        "goals": goals(speedups, loss_differences, differences),
    }  # fmt: skip
    if not arguments.no_memory:
        out["peak_memory_mb"] = {
            implementation: peak_memory(partial(run_alone, model_name, implementation, each, arguments.seconds))
            for implementation in implementations
        }
    return out


def loss_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference of two lists of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def goals(
    speedups: Mapping[str, float], loss_differences: Mapping[str, float], differences: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The results beside the goals. Padding is the usual practice; the trimmed variant has no goal.

    Args:
        speedups: How many times faster earwise is than each baseline.
        loss_differences: Largest relative difference of losses to each baseline.
        differences: Relative difference of gradients to each baseline.
    """
    speedup = speedups["trainer-padded"]
    lines: list[dict[str, Any]] = [
        {"what": "examples per second, times the Trainer's", "found": speedup, "goal": GOAL, "reached": speedup >= GOAL}
    ]
    for what, values in (("loss", loss_differences), ("gradient", differences)):
        largest = max(values.values())
        line = {"what": f"largest relative {what} difference", "found": largest, "goal": TOLERANCE}
        lines.append(line | {"reached": largest <= TOLERANCE})
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["embedded", "qwen2audio-random:small"])
    parser.add_argument("--questions", type=int, default=10, help="questions per clip")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per round; one more warms up")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every implementation")
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="float32", help=precision.COMPUTE_HELP)
    parser.add_argument(
        "--baseline-precision", choices=precision.CHOICES, default="float32", help=precision.BASELINE_HELP
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, one round, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the results, written after every model")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.questions, options.seconds = ["qwen2audio-random:tiny"], 3, 1.0
        options.steps, options.rounds, options.no_memory = 2, 1, True
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its results."""
    transformers.logging.set_verbosity_error()
    options = parse(arguments)
    result: dict[str, Any] = {"machine": machine(), "matmul_gflops": matmul_gflops(256 if options.quick else 2048)}
    result["results"] = []
    for model_name in options.model:
        result["results"].append(measure(model_name, options))
        result["machine"]["load_average_at_end"] = machine()["load_average"]
        if options.out:
            write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
