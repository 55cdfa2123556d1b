"""What a task is: examples, their scorer, the metrics over all scores, and the benchmark's own submission file.

Between the data on disk and `evaluation.run`, which knows a task by this class alone. Each task is one file in
`evaluation/tasks/` that defines a constant `TASK`; `task_table.TASKS` is the explicit table of them.

To add a task, write `evaluation/tasks/mybench.py`:

    def load(path: Path, audio_root: Path | None = None) -> list[Example]: ...

    def score(example: Example, completion: str) -> Score:
        correct = completion.strip().lower() == example.answer[0].lower()
        return Score({"exact": float(correct)}, "ok", completion)

    TASK = Task(
        name="mybench", load=load, score=score, scorer="mybench-exact/1", score_notes={"exact": "equal texts"},
        headline="exact", version="1.0", source="arXiv:0000.00000", licence="CC-BY-4.0",
    )

and add `"mybench": "earwise.evaluation.tasks.mybench:TASK"` to `task_table.TASKS`. A task outside of this package
needs no entry: `earwise evaluate --task my_module:TASK`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earwise.engine.embeddings.embedders import Embedder
from earwise.errors import ConfigError
from earwise.evaluation.aggregates.corpus import FORMULAS
from earwise.evaluation.judge.judging import Judging
from earwise.evaluation.published.harness_prompts import HARNESS_PROMPTS
from earwise.evaluation.results import EvalRun, Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.prompts import INSTRUCTIONS, REASONING_STYLES
from earwise.types import Example, Score

Load = Callable[[Path, Path | None], list[Example]]
"""`load(path, audio_root)`: the examples of the file at `path`. Relative audio paths start from `audio_root`, or from
the file's own folder if it is None."""
ScoreFn = Callable[[Example, str], Score]
"""`score(example, completion)`: the example has its options in the order that the model read."""
Aggregate = Callable[[Sequence[Row]], dict[str, Metric]]
"""`aggregate(rows)`: metrics by name over labelled rows of `samples.jsonl`, at least one for each score. Called for all
rows and for the rows of each group (task, category, number of options)."""
Wording = Callable[[Example], str]
"""`wording(example)`: the text of the user's turn, with the options in the order of `example.choices`."""
AddScores = Callable[[Sequence[Row]], list[Row]]
"""`add_scores(rows)`: the rows with the scores that can be computed only when all of them are there."""
Remarks = Callable[[Sequence[Row]], list[str]]
"""`remarks(rows)`: whole sentences that a reader of a run's scores must know: a figure that is missing here, and why,
or two scores that differ for another reason than what the model knows."""
JudgeRows = Callable[[Sequence[Example], Sequence[Row], Path], list[Row]]
"""`judge_rows(examples, rows, folder)`: the rows with the scores of judges, whose judgements the folder keeps."""
WritePredictions = Callable[[EvalRun, Path, Path], int]
"""`write_predictions(run, path, source)`: writes the submission file at `path` from the benchmark file `source`, and
returns how many of its items have no prediction."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark or kind of data, with everything that evaluating it needs."""

    name: str
    """Name in `task_table.TASKS` and in `metrics.json`."""
    load: Load
    score: ScoreFn
    scorer: str
    """Name and version of `score`, written into every row; it changes whenever a score could."""
    score_notes: Mapping[str, str]
    """Names of the scores and what each one measures, in the order of tables."""
    headline: str = "official"
    """Name of the score that sums up a run."""
    reasoning_headline: str | None = None
    """The same for prompt styles that reason before the answer; None: `headline`."""
    lower_is_better: frozenset[str] = frozenset()
    """Names of the scores that count errors: 0 is the best value, and values above 1 are possible."""
    corpus: Mapping[str, str] = field(default_factory=dict)
    """Scores that are defined over a corpus: name -> formula of the counts in its rows, a key of
    `aggregates.corpus.FORMULAS`. All others are means."""
    prompts: Mapping[str, Wording] = field(default_factory=dict)
    """Prompts of the benchmark's own program, and of others that people use for it, by name. Each is a prompt style
    beside those of `prompts.INSTRUCTIONS`."""
    default_style: str = "answer"
    """Prompt style where none is asked for: a key of `prompts` or of `prompts.INSTRUCTIONS`."""
    max_new_tokens: int = 64
    """Longest completion where no length is asked for, in tokens, in styles that do not reason."""
    add_scores: AddScores | None = None
    """Adds scores that depend on all rows (CIDEr-D weighs words by the whole corpus); None: `score` gives them all."""
    aggregate: Aggregate = mean_scores
    remarks: Remarks = lambda rows: []
    """Sentences about the scores of a run, shown below them."""
    write_predictions: WritePredictions | None = None
    """Writer of the benchmark's submission file; None if it has none."""
    predictions_name: str = "predictions.json"
    """Name of the submission file in the run's folder."""
    judging: Judging | None = None
    """What a judge is asked about the items that need one; they have no score without a judge. None: none needs one."""
    judge_rows: JudgeRows | None = None
    """The judges of a run (`judge.panel.judged` sets it); None: there is none."""
    with_embeddings: "Callable[[Task, Embedder], Task] | None" = None
    """`with_embeddings(task, embedder)`: the task with scores by text embeddings; None: it has none."""
    needs_answer: bool = True
    """Whether an item is scored only if it has an accepted answer."""
    ideal_answer: Callable[[Example], str] = lambda example: example.answer[0] if example.answer else ""
    """An answer that gets all points, for audits."""
    version: str = ""
    """Edition of the benchmark. Empty where the examples say it themselves (`meta["version"]`)."""
    source: str = ""
    """Paper or repository that defines the task."""
    licence: str = ""
    """Licence of the benchmark's data, or where it is stated."""
    unverified: str = ""
    """What is read as pages and programs describe it, because no published file was at hand to try; empty: nothing."""

    def __post_init__(self) -> None:
        for headline in filter(None, (self.headline, self.reasoning_headline)):
            if headline not in self.score_notes:
                raise ConfigError(
                    f"task {self.name!r}: headline {headline!r} is none of its scores ({', '.join(self.score_notes)})"
                )
        for name, formula in self.corpus.items():
            if name not in self.score_notes or formula not in FORMULAS:
                raise ConfigError(
                    f"task {self.name!r}: corpus {name}: {formula}: name one of its scores, and a formula of "
                    f"{', '.join(FORMULAS)}"
                )
        if self.default_style not in {*self.prompts, *INSTRUCTIONS}:
            raise ConfigError(
                f"task {self.name!r}: default_style {self.default_style!r} is neither one of its prompts nor a style"
            )

    def style_of(self, options_style: str) -> str:
        """The prompt style of a run: the one that is asked for, or the task's own if that is empty.

        Raises:
            ConfigError: if there is no such style.
        """
        style = options_style or self.default_style
        names = [*self.prompts, *INSTRUCTIONS, *HARNESS_PROMPTS]
        if style not in names:
            raise ConfigError(f"style {style!r} is none of {', '.join(names)} (task {self.name!r})")
        return style

    def wording_of(self, style: str) -> Wording | None:
        """What words a question in a prompt style: the task's own, or that of another program; None: a general one."""
        return self.prompts.get(style) or (None if style in INSTRUCTIONS else HARNESS_PROMPTS.get(style))

    def headline_of(self, style: str) -> str:
        """Name of the headline score under a prompt style, a key of `prompts.INSTRUCTIONS`."""
        return (style in REASONING_STYLES and self.reasoning_headline) or self.headline

    def is_scored(self, example: Example) -> bool:
        """Whether `score` gives an item its scores: it has an accepted answer or needs none, and is not left to a
        judge."""
        return bool(example.answer or not self.needs_answer) and not self.waits_for_judge(example)

    def waits_for_judge(self, example: Example) -> bool:
        """Whether only a judge can score an item."""
        return self.judging is not None and self.judging.alone and self.judging.applies(example)

    def error_score(self, example: Example, explanation: str) -> Score:
        """The score of an item without a completion: as bad as an empty one, so that it counts as wrong."""
        values = {name: float(name in self.lower_is_better) for name in self.score_notes}
        counts = self.score(example, "").counts if self.corpus else {}
        return Score(values, "error", None, explanation, counts)
