"""A part of a mixture that a collection has no rows for is left out only where the recipe says so."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from builders import tone
from earwise.config.recipe import check_recipe
from earwise.errors import ConfigError, DataError
from earwise.training.check_recipe import check_stage
from earwise.training.stages.ridge import NO_LABEL, _targets
from families.embedded import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", tone(0.2), 16000)
    content = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "what?"}]
    rows = [
        {"id": f"{field}{n}", "messages": [{"role": "user", "content": content}], "answer": "dog", "task": "varied"}
        | ({"field": field} if field else {})
        for field in ("sound", "emotion", "")
        for n in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def counts(folder: Path, *sources: dict[str, object]) -> tuple[dict[str, int], list[str]]:
    """Number of rows of each part of a mixture, and what is said about them."""
    mixture = [{"manifest": "rows.jsonl", **source} for source in sources]
    recipe = check_recipe(
        {"recipe": "t", "stages": [{"kind": "sft", "max_steps": 1, "data": {"mixture": mixture}}]}, "t"
    )
    lines: list[str] = []
    return check_stage(recipe.stages[0], folder, {}, lines.append).row_counts, lines


def test_rows_are_chosen_by_what_they_ask_for(folder: Path) -> None:
    rows, _ = counts(folder, {"where": {"field": ["sound", "digit"]}}, {"where": {"field": "", "task": "varied"}}, {})
    assert list(rows.values()) == [2, 2, 6]


def test_a_part_without_rows_is_left_out_if_it_is_optional(folder: Path) -> None:
    digits = {"where": {"field": "digit"}}
    with pytest.raises(DataError, match=r"none of 6 rows with \{'field': 'digit'\}"):
        counts(folder, digits, {})
    rows, lines = counts(folder, {**digits, "optional": True}, {})
    assert rows == {"rows.jsonl": 6} and lines[0] == "rows.jsonl field=digit: no such row; left out of the mixture"
    with pytest.raises(DataError, match=r"none\.jsonl: is not there"):
        counts(folder, {"manifest": "none.jsonl"}, {})
    rows, lines = counts(folder, {"manifest": "none.jsonl", "optional": True}, {})
    assert rows == {"rows.jsonl": 6} and lines == ["none.jsonl: no such manifest; left out of the mixture"]
    with pytest.raises(DataError, match="stage sft: no part of its mixture has a row"):
        counts(folder, {**digits, "optional": True})


def test_a_summary_token_of_what_no_clip_is_labelled_with_says_so() -> None:
    model = tiny().model
    labels: list[dict[str | None, str]] = [{"sound": "dog"}, {"sound": "rain", "gender": "woman"}, {}]
    moods = _targets(model, ("emotion",), labels)
    expected = model.embed(torch.tensor(model.tokenizer.encode(" " + NO_LABEL))).mean(0)
    assert torch.equal(moods, expected.expand(3, -1)), "not NaN, which no regression can be fitted to"
    assert _targets(model, ("gender",), labels).isnan().any(1).tolist() == [True, False, True]
    with pytest.raises(ConfigError, match=r"needs rows with meta\.field sound or instrument or digit"):
        _targets(model, ("sound", "instrument", "digit"), [{}, {"gender": "woman"}])
