"""`earwise build words`: the embedded model with slots for the words that are spoken."""

from pathlib import Path

import click

from earwise.commands.loading import model_option, open_model
from earwise.commands.paths import FILE

# The defaults of WordSlots, repeated here because that module imports torch. A test compares them.
PER_SECOND, EXTRA, MOST = 5.0, 8, 128


@click.command("words", short_help="Let the embedded model read what a recogniser writes about speech.")
@model_option
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write the model to.")
@click.option("--per-second", default=PER_SECOND, show_default=True, help="Tokens for words per second of audio.")
@click.option("--extra", default=EXTRA, show_default=True, help="Tokens for words of a clip of any length.")
@click.option("--most", default=MOST, show_default=True, help="Largest number of tokens for words of a clip.")
def command(model: str, out: Path, per_second: float, extra: int, most: int) -> None:
    """Give the embedded model slots that show the words of a clip, as Whisper's own decoder writes them.

    The result is a start for training: the decoder has not learnt to read the slots yet.

    \b
    earwise build words --model runs/start --out runs/start-words
    """
    from earwise.apps.word_slots import add_word_slots
    from earwise.models.embedded.spoken_words import WordSlots

    slots = add_word_slots(open_model(model), out, WordSlots(per_s=per_second, extra=extra, most=most))
    gate = "a speech gate" if slots.gate else "no speech gate: every clip is transcribed"
    click.echo(f"{out}: {slots.per_s:g} tokens a second for words, {gate}")
