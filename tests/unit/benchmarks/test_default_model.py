"""The summary of the default model counts each skill, with the blind control beside it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import default_model


def sample(number: int, task: str, category: str, score: float) -> str:
    """One line of samples.jsonl."""
    scores = {"official": score}
    row = {"id": f"q{number}", "task": task, "category": category, "scores": scores, "audio": [f"c{number}.ogg"]}
    return json.dumps(row) + "\n"


def test_skills_with_intervals_and_silence(tmp_path: Path) -> None:
    (tmp_path / "silence").mkdir()
    heard = [sample(n, "recognition", "music" if n < 6 else "sound", float(n < 5)) for n in range(8)]
    heard += [sample(8, "varied", "sound", 1.0), sample(9, "varied", "sound", 0.0)]
    (tmp_path / "samples.jsonl").write_text("".join(heard))
    (tmp_path / "silence" / "samples.jsonl").write_text(
        sample(0, "recognition", "music", 1.0) + sample(1, "recognition", "music", 0.0)
    )
    skills = default_model.by_skill(tmp_path, {"q8": "sound", "q9": "sound"}, frozenset({"c9"}))
    assert {name: (skill["n"], skill["right"]) for name, skill in skills.items()} == {
        "recognition": (8, 5 / 8), "recognition (music)": (6, 5 / 6), "recognition (sound)": (2, 0.0),
        "varied sound": (2, 0.5), "rare sounds": (1, 0.0),
    }  # fmt: skip
    # Wilson's interval of 5 of 8, by hand: (.625 + .2401 -+ 1.96 sqrt(.0293 + .0150)) / 1.4802
    assert (skills["recognition"]["low"], skills["recognition"]["high"]) == pytest.approx((0.306, 0.863), abs=1e-3)
    assert skills["recognition"]["silence"] == 0.5 and "silence" not in skills["varied sound"]
