"""`earwise build connector`: the embedded model with a connector that is fitted on a labelled collection."""

from dataclasses import asdict
from pathlib import Path

import click

from earwise.commands.loading import field_values, json_option, model_option, note, open_model, print_json
from earwise.commands.paths import FILE


@click.command("connector", short_help="Fit the embedded model's connector on labelled clips.")
@click.argument("collection", type=FILE)
@model_option
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write the model to.")
@click.option("--scenes", multiple=True, type=FILE, help="Manifest of composed scenes; may be given several times.")
@click.option("--where-not", "without", multiple=True, metavar="FIELD=VALUE", help="Leave out clips with this value.")
@click.option("--encoder-cache", type=FILE, help="Folder that keeps encoder states, as in a recipe.")
@click.option("--seed", default=0, show_default=True, help="Seed of the fit.")
@json_option
def command(
    collection: Path,
    model: str,
    out: Path,
    scenes: tuple[Path, ...],
    without: tuple[str, ...],
    encoder_cache: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Fit classifiers of what is heard on the clips of COLLECTION, and put their words into the embedded model.

    The result is a start for training: the decoder has not learnt to read the words yet.

    \b
    earwise build connector my-sounds/ --model embedded-aligned --out runs/start
    """
    from earwise.apps.label_connector import build_label_connector

    report = build_label_connector(
        open_model(model),
        collection,
        out,
        scenes=scenes,
        without=field_values(without, "--where-not"),
        encoder_cache=encoder_cache,
        seed=seed,
    )
    if as_json:
        print_json(asdict(report))
        return
    for facet, share in report.first.items():
        note(f"{facet}: {share:.3f} of the validation clips right, {report.shown[facet]:.3f} among those shown")
    click.echo(f"{out}: connector fitted on {report.clips} clips")
