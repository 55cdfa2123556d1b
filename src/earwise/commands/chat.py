"""`earwise chat`: a conversation with sounds, in the terminal."""

import sys
from pathlib import Path

import click

from earwise.commands.loading import (
    compute_option,
    max_new_tokens_option,
    model_option,
    note,
    seed_option,
    temperature_option,
)
from earwise.commands.paths import FILE
from earwise.commands.terminal import printable
from earwise.errors import EarwiseError

HELP = "/audio PATH attaches a sound to your next question, /reset starts anew, /quit ends"


@click.command("chat", short_help="Talk with a model about sounds, turn by turn.")
@click.argument("sounds", nargs=-1, metavar="[SOUND]...", type=FILE)
@model_option
@max_new_tokens_option(256)
@temperature_option
@seed_option
@compute_option
def command(
    sounds: tuple[Path, ...], model: str, max_new_tokens: int, temperature: float, seed: int, compute: str
) -> None:
    """Talk with MODEL about SOUND; attach more sounds with /audio PATH.

    \b
    $ earwise chat dog.ogg
    > What do you hear?
    > /audio cat.ogg
    > And now?
    > /quit

    Questions may also come from a pipe, one per line.
    """
    from earwise.audio_model import load
    from earwise.engine.base import SamplingParams

    conversation = load(model, note, compute=compute).chat(SamplingParams(max_new_tokens, temperature, seed=seed))
    note(HELP)

    def attach(path: Path) -> None:
        note(f"{path.name}: {conversation.attach(path):.1f} s")

    for sound in sounds:
        attach(sound)
    while (line := _read_line()) is not None:
        word, _, argument = line.partition(" ")
        try:
            if not line or word == "/help":
                note(HELP)
            elif word == "/quit":
                break
            elif word == "/reset":
                conversation.reset()
                note("a new conversation")
            elif word == "/audio":
                attach(Path(argument.strip()).expanduser())
            elif word.startswith("/"):
                note(f"{word}: no such command; {HELP}")
            else:
                for part in conversation.stream(line):
                    click.echo(printable(part), nl=False)
                click.echo()
        except EarwiseError as error:
            note(f"error: {error}")


def _read_line() -> str | None:
    """The next line of the user, stripped; None at the end of input, or after Ctrl-C at the prompt."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo()
        return None
