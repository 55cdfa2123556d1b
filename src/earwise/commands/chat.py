"""`earwise chat`: a conversation with sounds, in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.ask import hear
from earwise.commands.loading import model_option, note, open_engine
from earwise.errors import EarwiseError

if TYPE_CHECKING:
    from earwise.types import Part, Waveform

HELP = "/audio PATH attaches a sound to your next question, /reset starts anew, /quit ends"


@click.command("chat", short_help="Talk with a model about sounds, turn by turn.")
@click.argument("sounds", nargs=-1, metavar="[SOUND]...", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--max-new-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0 says the likeliest answer; above, draws one.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
def command(sounds: tuple[Path, ...], model: str, max_new_tokens: int, temperature: float, seed: int) -> None:
    """Talk with MODEL about SOUND; attach further ones with /audio PATH.

    \b
    $ earwise chat dog.ogg
    > What do you hear?
    > /audio cat.ogg
    > And now?
    > /quit

    Also reads questions from a pipe, one a line.
    """
    from earwise.engine.base import Decoding, Prompt
    from earwise.types import Audio, Text, Turn

    engine = open_engine(model)
    note(HELP)
    turns: list[Turn] = []
    waves: list[Waveform] = []
    attached: list[Part] = []
    asked = 0

    def attach(path: Path) -> None:
        waves.extend(hear(engine, path, "error", False))
        attached.append(Audio(str(path)))
        note(f"{path.name}: {len(waves[-1]) / engine.sample_rate:.1f} s")

    for sound in sounds:
        attach(sound)
    while (line := _line()) is not None:
        word, _, rest = line.partition(" ")
        try:
            if not line or word == "/help":
                note(HELP)
            elif word == "/quit":
                break
            elif word == "/reset":
                turns, waves, attached = [], [], []
                note("a new conversation")
            elif word == "/audio":
                attach(Path(rest.strip()).expanduser())
            elif word.startswith("/"):
                note(f"{word}: no such command; {HELP}")
            else:
                question = Turn("user", (*attached, Text(line)))
                prompt = Prompt((*turns, question), tuple(waves), f"chat {asked}")
                said = ""
                for piece in engine.stream(
                    prompt, Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
                ):
                    click.echo(piece, nl=False)
                    said += piece
                click.echo()
                turns += [question, Turn("assistant", (Text(said),))]
                attached, asked = [], asked + 1
        except EarwiseError as error:
            note(f"error: {error}")


def _line() -> str | None:
    """The next line of the user, stripped; None at the end of input, or when Ctrl-C is pressed at the prompt."""
    import sys

    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo()
        return None
