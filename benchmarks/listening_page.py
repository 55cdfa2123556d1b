"""Makes the page to listen to, `docs/results/listening.md`: fifty validation clips with what a model answers.

    python benchmarks/listening_page.py --out runs/listening [--model embedded] [--style plain] [--reasoning think]

Builds questions about the bundled validation clips, evaluates the model on all of them, with silence as a blind
control, draws fifty, in the proportion of right and wrong answers that the evaluation has, and writes the page and the
audio of its scenes. With `--reasoning STYLE` the fifty are asked once more in a style that reasons. Finished parts are
kept in the folder, so that a stopped run continues, and a finished one only writes the page. Another model needs
another folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from listening import page, questions, selection
from listening.items import read_items, read_rows
from listening.shown_words import read_shown_words, write_shown_words

from earwise.apps.recipe_eval import progress_printer
from earwise.audio_model import load
from earwise.data import manifest
from earwise.engine.base import SamplingParams
from earwise.evaluation.controls import Control
from earwise.evaluation.run import EvalOptions, evaluate_with_controls
from earwise.types import Example

ROOT = Path(__file__).parents[1]
PAGE_CLIPS = 50
DEFAULTS = {"per-skill": 20, "seed": 0}
MAX_NEW_TOKENS, MAX_REASONING_TOKENS = 64, 160


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the questions, evaluate, and write the page."""
    parser = argparse.ArgumentParser(description="the page to listen to")
    parser.add_argument("--out", type=Path, required=True, help="folder of the questions and the evaluation")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--style", default="plain", help="wording of the questions")
    parser.add_argument("--reasoning", metavar="STYLE", help="ask the clips of the page once more in this style")
    parser.add_argument(
        "--per-skill", type=int, default=DEFAULTS["per-skill"], help="maximum number of questions of each skill"
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS["seed"], help="seed of the questions and of the draw")
    parser.add_argument("--page-only", action="store_true", help="write the page from the answers that are there")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the documentation")
    options = parser.parse_args(arguments)
    write_page(options)


def write_page(options: argparse.Namespace) -> None:
    """Build the questions, evaluate, draw and write, as the options of the command say."""
    direct, reasoned, shown = (options.out / name for name in ("direct", "reasoned", "shown-words.json"))
    path = questions.build(options.out, options.per_skill, options.seed, notify)
    if not options.page_only:
        ask(options.model, manifest.read(path), direct, options.style, ("silence",))
    items = read_items(path, direct)
    drawn = selection.draw(items, PAGE_CLIPS, options.seed)
    if not options.page_only:
        if options.reasoning:
            ask(options.model, [item.example for item in drawn], reasoned, options.reasoning, ())
        described = [item for item in items if item in drawn or not item.is_right]
        clips = sorted({path for item in described for path in item.example.audio_paths})
        write_shown_words(options.model, clips, shown, notify)
    given = {"reasoning": options.reasoning, "per-skill": options.per_skill, "seed": options.seed}
    command = "".join(f" --{name} {value}" for name, value in given.items() if value not in (None, DEFAULTS.get(name)))
    page.write(
        items, drawn, options.docs, reasoned=read_rows(reasoned) if options.reasoning else {},
        shown=read_shown_words(shown), options=command,
    )  # fmt: skip


def notify(line: str) -> None:
    """Print a line about progress."""
    print(line, file=sys.stderr, flush=True)


def ask(model: str, examples: Sequence[Example], out: Path, style: str, blind: Sequence[Control]) -> None:
    """Evaluate a model on the questions, greedily; answers that are there already are kept.

    Args:
        model: Name of a model, as `earwise evaluate --model` takes it.
        examples: The questions.
        out: Folder of the evaluation.
        style: Wording of the questions.
        blind: Blind controls.
    Raises:
        ConfigError: if the folder holds the answers of another model, or of the same one with other weights.
    """
    params = SamplingParams(max_new_tokens=MAX_REASONING_TOKENS if out.name == "reasoned" else MAX_NEW_TOKENS)
    evaluate_with_controls(
        load(model, notify).engine, examples, out, EvalOptions(style=style, sampling_params=params), blind=blind,
        on_progress=progress_printer(notify),
    )  # fmt: skip


if __name__ == "__main__":
    main()
