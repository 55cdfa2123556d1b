"""A rubric of one's own: a YAML file with a prompt and a scale, by which a judge scores any task.

    name: politeness/1
    scale: [1, 5]
    prompt: |
      How polite is this answer to the question "{question}"?
      Reference: {reference}
      Answer: {response}

The reply must be JSON with a `score` on the scale; the instruction for that is added to the prompt. Placeholders are
`question`, `reference` (the accepted answer), `response` (the output), `answer` (what was read from it), `reasoning`
and `choices`.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from earwise.errors import ConfigError
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.judge.replies import read_json_score
from earwise.evaluation.results import Row
from earwise.types import Example

KEYS = {"name", "scale", "prompt", "system", "max_tokens"}
PART = "rubric"
INSTRUCTION = (
    'Reply with JSON only: {{"reason": "one sentence", "score": N}}, N from {low:g} (worst) to {high:g} (best).'
)


def read_rubric(path: Path) -> Judging:
    """The judging of a rubric file.

    Raises:
        ConfigError: if the file cannot be read, or a key is unknown, missing or has a wrong value.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: no rubric ({' '.join(str(error).split())}); write name, scale and prompt"
        ) from error
    if not isinstance(content, dict) or not {"name", "scale", "prompt"} <= content.keys():
        raise ConfigError(f"{path}: a rubric has the keys name, scale and prompt; write all three")
    if unknown := content.keys() - KEYS:
        raise ConfigError(f"{path}: unknown key {min(map(str, unknown))!r}; the keys are {', '.join(sorted(KEYS))}")
    low, high = _scale(content["scale"], path)
    if "{response}" not in str(content["prompt"]) and "{answer}" not in str(content["prompt"]):
        raise ConfigError(f"{path}: the prompt shows the judge no answer; write {{response}} or {{answer}} into it")
    instruction = INSTRUCTION.format(low=low, high=high)
    prompt = JudgePrompt(
        str(content["name"]), f"{str(content['prompt']).rstrip()}\n\n{instruction}", str(content.get("system") or ""),
        int(content.get("max_tokens") or 256),
    )  # fmt: skip
    return rubric_judging(prompt, low, high)


def rubric_judging(prompt: JudgePrompt, low: float, high: float) -> Judging:
    """Judging by one prompt whose reply is a score from `low` to `high`, mapped to [0, 1]."""

    def requests(example: Example, row: Row) -> list[JudgeRequest]:
        fields = {
            "question": example.question, "reference": " / ".join(example.answer), "response": row["output"],
            "answer": str(row["answer"] or ""), "reasoning": str(row["reasoning"] or ""),
            "choices": ", ".join(row["choices"]),
        }  # fmt: skip
        return [request(row, PART, prompt, fields)]

    def score(example: Example, row: Row, values: Values) -> dict[str, float]:
        return {"rubric": (values[PART] - low) / (high - low) if PART in values else 0.0}

    return Judging(
        prompts=(prompt,),
        score_notes={"rubric": f"score of a judge by {prompt.name}, {low:g} to {high:g} as 0 to 1"},
        headline="rubric",
        requests=requests,
        read=lambda example, part, text: read_json_score(text, low, high),
        score=score,
        sample_reply=lambda example, part, good: f'{{"score": {high if good else low:g}}}',
        alone=False,
    )


def _scale(value: Any, path: Path) -> tuple[float, float]:
    """Ends of the scale.

    Raises:
        ConfigError: if they are no two numbers, the lower one first.
    """
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    if not is_pair or not math.isfinite(value[0]) or not value[0] < value[1]:
        raise ConfigError(f"{path}: scale is {value!r}; write the worst and the best score, for example [1, 5]")
    return float(value[0]), float(value[1])
