"""`earwise ask`: one question about one or several files."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import json_option, model_option, note, open_engine, result
from earwise.errors import AudioError, ConfigError, EngineError

if TYPE_CHECKING:
    from earwise.engine.base import Decoding, Engine, Prompt
    from earwise.types import Waveform


@click.command("ask", short_help="Ask a question about a sound.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--choices",
    "-c",
    metavar="A,B,...",
    help="Two options or more, parted by commas (yes,no) or, where there is one, by |: 'a dog, barking|a cat'.",
)
@click.option("--think", is_flag=True, help="Let the model reason before it answers.")
@model_option
@json_option
@click.option(
    "--max-new-tokens", default=128, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0 says the likeliest answer; above, draws one.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option(
    "--long-audio", default="error", show_default=True, type=click.Choice(["error", "truncate", "chunk"]),
    help="What to do with a file longer than the model hears: refuse it, hear its beginning, or ask of each piece.",
)  # fmt: skip
@click.option("--allow-silent", is_flag=True, help="Ask about a file without sound, too.")
def command(
    files: tuple[Path, ...],
    question: str,
    choices: str | None,
    think: bool,
    model: str,
    as_json: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    long_audio: str,
    allow_silent: bool,
) -> None:
    """Ask QUESTION about one FILE or several (in the order given).

    \b
    earwise ask clip.ogg "What do you hear?"
    earwise ask clip.ogg "Which sound is this?" --choices "dog bark,siren,rain"
    earwise ask clip.ogg "Is someone speaking?" --choices yes,no --json
    earwise ask lecture.wav "What happens here?" --long-audio chunk

    With --choices the answer is one of them, or, where the model names none, its own words. --json adds `likelihood`:
    the probability of each option among the options, whatever the model said.
    """
    from earwise.engine.base import Decoding

    options = split_choices(choices)
    if long_audio == "chunk" and len(files) > 1:
        raise ConfigError(
            f"--long-audio chunk asks about the pieces of one file, {len(files)} are given; ask about each by itself"
        )
    started = perf_counter()
    _check_files(files)
    engine = open_engine(model)
    loaded = perf_counter()
    heard = [hear(engine, path, long_audio, allow_silent) for path in files]
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    pieces = [tuple(waves[0] for waves in heard)] if len(heard) > 1 else [tuple([piece]) for piece in heard[0]]
    answers = _answers(engine, files, pieces, question, options, think, decoding, with_likelihood=as_json)
    if not as_json:
        for answer in answers:
            where = f"{answer['from_s']:.0f}-{answer['to_s']:.0f} s: " if len(answers) > 1 else ""
            if answer["reasoning"]:
                note(f"{where}{answer['reasoning']}")
            click.echo(where + _words(answer))
            if options and answer["choice"] is None:
                note(f"{where}the model's words name none of the options, or several ({answer['status']})")
        return
    first = answers[0]
    result(
        {key: value for key, value in first.items() if key not in ("from_s", "to_s")}
        | {
            "model": engine.name,
            "revision": engine.revision,
            "files": [str(path) for path in files],
            "audio_seconds": round(sum(len(wave) for waves in heard for wave in waves) / engine.sample_rate, 3),
            "load_seconds": round(loaded - started, 3),
            "seconds": round(perf_counter() - loaded, 3),
        }
        | ({"pieces": answers} if len(answers) > 1 else {})
    )


def _words(answer: dict[str, Any]) -> str:
    """What to show of a row: the option named, else the model's own words without tags."""
    from earwise.answers import parse

    return str(answer["answer"] or parse(answer["output"], ()).answer or answer["output"].strip())


def split_choices(text: str | None) -> tuple[str, ...]:
    """Options of `--choices`.

    >>> split_choices("yes, no"), split_choices("a dog, barking|a cat")
    (('yes', 'no'), ('a dog, barking', 'a cat'))

    Raises:
        ConfigError: for fewer than two options, an empty one, or one that stands twice.
    """
    if text is None:
        return ()
    mark = "|" if "|" in text else ","
    options = tuple(part.strip() for part in text.split(mark))
    how = f"give two or more different options parted by {mark!r}, for example --choices 'yes{mark}no'"
    if len(options) < 2:
        raise ConfigError(f"--choices {text!r}: is one option; {how}")
    if not all(options):
        raise ConfigError(f"--choices {text!r}: option {options.index('') + 1} of {len(options)} is empty; {how}")
    if twice := [option for option in options if options.count(option) > 1]:
        raise ConfigError(f"--choices {text!r}: {twice[0]!r} stands twice; {how}")
    return options


def hear(engine: "Engine", path: Path, long_audio: str, allow_silent: bool) -> "list[Waveform]":
    """Decode a file for an engine: one waveform, or under `chunk` as many as it has pieces.

    Raises:
        AudioError: if it cannot be read, is too long, or holds no sound.
    """
    from earwise.audio import chunks, decode, is_silent, probe

    wave = decode(path, engine.sample_rate, long_audio=long_audio, max_s=engine.max_audio_s)  # type: ignore[arg-type]
    if is_silent(wave) and not allow_silent:
        raise AudioError(f"{path}: is silent (nothing above -80 dBFS); record it again, or say --allow-silent")
    if long_audio == "truncate" and (whole := probe(path).duration_s) > engine.max_audio_s:
        note(f"{path}: only the first {engine.max_audio_s:g} of {whole:.1f} s are heard")
    return chunks(wave, engine.sample_rate, engine.max_audio_s) if long_audio == "chunk" else [wave]


def _check_files(files: tuple[Path, ...]) -> None:
    """Refuse what is no audio before a model is loaded."""
    from earwise.audio import probe

    for path in files:
        probe(path)


def _answers(
    engine: "Engine",
    files: tuple[Path, ...],
    pieces: "list[tuple[Waveform, ...]]",
    question: str,
    options: tuple[str, ...],
    think: bool,
    decoding: "Decoding",
    *,
    with_likelihood: bool,
) -> list[dict[str, Any]]:
    """One row a piece: what the model says, taken apart, and how likely each option is."""
    from earwise.answers import parse
    from earwise.engine.base import Prompt
    from earwise.prompts import prompt_turns
    from earwise.types import Audio, Example, Text, Turn

    parts = tuple(Audio(str(path)) for path in files)
    example = Example("ask", (Turn("user", (*parts, Text(question))),), choices=options)
    style = "think" if think else "answer" if options else "open"
    turns = prompt_turns(example, style)
    prompts = [Prompt(turns, waves, f"ask {number}") for number, waves in enumerate(pieces)]
    completions = [samples[0] for samples in engine.generate(prompts, decoding)]
    likelihoods = _likelihoods(engine, example, prompts, options) if options and with_likelihood else None
    rows, at = [], 0.0
    for number, (waves, completion) in enumerate(zip(pieces, completions, strict=True)):
        parsed = parse(completion.text, options)
        length = sum(len(wave) for wave in waves) / engine.sample_rate
        row = {
            "question": question,
            "answer": parsed.answer,
            "choice": parsed.choice,
            "output": completion.text,
            "reasoning": parsed.reasoning,
            "status": parsed.status,
            "finish_reason": completion.finish_reason,
            "from_s": round(at, 3),
            "to_s": round(at + length, 3),
        }
        rows.append(row | ({"likelihood": likelihoods[number]} if likelihoods else {}))
        at += length
    return rows


def _likelihoods(
    engine: "Engine", example: Any, prompts: "list[Prompt]", options: tuple[str, ...]
) -> list[dict[str, float]]:
    """Probability of each option among the options, as the whole answer to the plain answer prompt; none where the
    engine, a server, tells none."""
    import math

    from earwise.engine.base import Prompt
    from earwise.prompts import prompt_turns, target_text

    turns = prompt_turns(example, "answer")
    texts = [target_text(example, "answer", option) for option in options]
    asked = [Prompt(turns, prompt.waves, prompt.key) for prompt in prompts]
    try:
        told = engine.score(asked, [texts] * len(asked))
    except EngineError as error:
        note(f"no likelihoods: {error}")
        return []
    found = []
    for scores in told:
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        found.append({option: round(weight / sum(weights), 6) for option, weight in zip(options, weights, strict=True)})
    return found
