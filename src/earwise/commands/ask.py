"""`earwise ask`: one question about one file or several."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import (
    channel_option,
    compute_option,
    json_option,
    max_new_tokens_option,
    model_option,
    note,
    print_json,
    seed_option,
    temperature_option,
)
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE
from earwise.commands.terminal import printable
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.audio_model import Answer, AudioModel


@dataclass(frozen=True, slots=True)
class AskOptions:
    """The options of `earwise ask`."""

    files: tuple[Path, ...]
    question: str
    choices: str | None
    think: bool
    model: str
    as_json: bool
    max_new_tokens: int
    temperature: float
    seed: int
    long_audio: str
    channel: str
    compute: str
    allow_silent: bool


@click.command("ask", short_help="Ask a question about a sound.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FILE)
@click.argument("question")
@click.option(
    "--choices",
    "-c",
    metavar="A,B,...",
    help="Two or more options, separated by commas (yes,no) or, if there is one, by |: 'a dog, barking|a cat'.",
)
@click.option("--think", is_flag=True, help="Let the model reason before it answers.")
@model_option
@json_option
@max_new_tokens_option(128)
@temperature_option
@seed_option
@click.option(
    "--long-audio", default="error", show_default=True, type=click.Choice(["error", "truncate", "chunk"]),
    help="For a file longer than the model accepts: refuse it, use its beginning, or ask about each chunk of it.",
)  # fmt: skip
@channel_option
@compute_option
@click.option("--allow-silent", is_flag=True, help="Accept files without any sound.")
def command(**values: Any) -> None:
    """Ask QUESTION about one FILE or several (in the order given).

    \b
    earwise ask clip.ogg "What do you hear?"
    earwise ask clip.ogg "Which sound is this?" --choices "dog bark,siren,rain"
    earwise ask clip.ogg "Is someone speaking?" --choices yes,no --json
    earwise ask lecture.wav "What happens here?" --long-audio chunk

    With --choices the answer is one of them, or the model's own words if it names none. --json adds `likelihood`: the
    probability of each option relative to all options, whatever the model answered.
    """
    from earwise.audio import probe
    from earwise.audio_model import load

    options = collect_options(AskOptions, values)
    choices = split_choices(options.choices)
    if options.long_audio == "chunk" and len(options.files) > 1:
        raise ConfigError(
            f"--long-audio chunk asks about the chunks of one file, {len(options.files)} are given; ask about each by "
            "itself"
        )
    started = perf_counter()
    for path in options.files:
        probe(path)  # refuses a bad file before a model is loaded
    model = load(options.model, note, "first" if options.channel == "first" else "mean", options.compute)
    loaded = perf_counter()
    answers = _ask(model, options, choices)
    if options.as_json:
        timing = {"load_seconds": round(loaded - started, 3), "seconds": round(perf_counter() - loaded, 3)}
        print_json(_as_json(model, options, choices, answers) | timing)
        return
    for answer in answers:
        prefix = f"{answer.start_s:.0f}-{answer.start_s + answer.duration_s:.0f} s: " if len(answers) > 1 else ""
        if answer.reasoning:
            note(f"{prefix}{answer.reasoning}")
        click.echo(printable(prefix + answer.answer))
        if choices and answer.choice is None:
            note(f"{prefix}the model names none of the options, or several ({answer.status})")


def _ask(model: "AudioModel", options: AskOptions, choices: tuple[str, ...]) -> "list[Answer]":
    """The answer, or with `--long-audio chunk` one answer per chunk."""
    from earwise.engine.base import SamplingParams

    sampling_params = SamplingParams(options.max_new_tokens, options.temperature, seed=options.seed)
    if options.long_audio == "chunk":
        return model.ask_chunks(
            options.files[0], options.question, choices=choices, think=options.think, probabilities=options.as_json,
            allow_silent=options.allow_silent, sampling_params=sampling_params,
        )  # fmt: skip
    answer = model.ask(
        options.files, options.question, choices=choices, think=options.think, probabilities=options.as_json,
        long_audio="truncate" if options.long_audio == "truncate" else "error", allow_silent=options.allow_silent,
        sampling_params=sampling_params,
    )  # fmt: skip
    return [answer]


def _as_json(
    model: "AudioModel", options: AskOptions, choices: tuple[str, ...], answers: "list[Answer]"
) -> dict[str, Any]:
    """The object that --json prints: the first answer, the model, the files, and all answers if there are several."""
    rows = [_row(answer, choices) for answer in answers]
    first = {key: value for key, value in rows[0].items() if key not in ("from_s", "to_s")}
    return (
        first
        | {
            "model": model.name,
            "revision": model.revision,
            "files": [str(path) for path in options.files],
            "audio_seconds": round(sum(answer.duration_s for answer in answers), 3),
        }
        | ({"pieces": rows} if len(rows) > 1 else {})
    )


def _row(answer: "Answer", choices: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "question": answer.question,
        "answer": answer.answer if answer.status == "ok" else None,
        "choice": answer.choice,
        "output": answer.text,
        "reasoning": answer.reasoning,
        "status": answer.status,
        "finish_reason": answer.finish_reason,
        "from_s": round(answer.start_s, 3),
        "to_s": round(answer.start_s + answer.duration_s, 3),
    }
    if answer.probabilities:
        row["likelihood"] = {option: round(answer.probabilities[option], 6) for option in choices}
    return row


def split_choices(text: str | None) -> tuple[str, ...]:
    """Split the value of `--choices` into options.

    >>> split_choices("yes, no"), split_choices("a dog, barking|a cat")
    (('yes', 'no'), ('a dog, barking', 'a cat'))

    Raises:
        ConfigError: for fewer than two options, an empty one, or one that occurs twice.
    """
    if text is None:
        return ()
    separator = "|" if "|" in text else ","
    options = tuple(part.strip() for part in text.split(separator))
    remedy = f"give two or more different options separated by {separator!r}, for example --choices 'yes{separator}no'"
    if len(options) < 2:
        raise ConfigError(f"--choices {text!r}: is one option; {remedy}")
    if not all(options):
        raise ConfigError(f"--choices {text!r}: option {options.index('') + 1} of {len(options)} is empty; {remedy}")
    if duplicates := [option for option in options if options.count(option) > 1]:
        raise ConfigError(f"--choices {text!r}: {duplicates[0]!r} occurs twice; {remedy}")
    return options
