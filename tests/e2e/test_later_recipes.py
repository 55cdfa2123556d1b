"""The later recipes on real clips through the command line: data is built from bundled clips, the profile `cpu` takes a
step of each stage, and the trained model is evaluated with its blind controls."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from earwise import cli
from earwise.data import manifest
from earwise.data.manifest_path import STARTER

QUICK = [
    "stages.*.max_steps=1", "stages.*.optimizer.warmup_steps=0", "eval.0.limit=2", "eval.0.max_new_tokens=4",
    "trackers=[]",
]  # fmt: skip
SMALL: dict[str, list[str]] = {
    "gkd": ["stages.gkd.clips_per_step=2", "stages.gkd.max_new_tokens=6"],
    "audio-r1": ["stages.grpo.prompts_per_step=2", "stages.grpo.group_size=2", "stages.grpo.max_new_tokens=6"],
    "audiomcq": ["stages.weak.rows_per_step=2", "stages.strong.prompts_per_step=2", "stages.strong.group_size=2",
                 "stages.strong.max_new_tokens=6"],
    "hyper": ["stages.perception.rows_per_step=2", "stages.grpo.prompts_per_step=2", "stages.grpo.group_size=2",
              "stages.grpo.max_new_tokens=24"],
}  # fmt: skip
"""Recipe -> settings that make a step of its profile `cpu` small."""


def build(name: str) -> None:
    """Build what the profile `cpu` of a recipe names, in the working folder."""
    if name == "audio-r1":
        folder = Path("recordings")
        folder.mkdir()
        clips = sorted((STARTER / "clips").iterdir(), key=lambda path: -path.stat().st_size)
        for clip in clips[:8]:
            shutil.copy(clip, folder / clip.name)
        command = ["build", "puzzles", "recordings", "--out", "runs/puzzles/puzzles.jsonl", "--val-share", "0.4"]
        assert cli.run([*command, "--no-check", "--workers", "1"]) == 0
    rows = [row for row in manifest.read(STARTER / "train.jsonl") if row.task == "recognition"][:6]
    if name == "audiomcq":
        marked = [
            replace(row, meta={**row.meta, "audio-contribution": ("weak", "strong")[number % 2]})
            for number, row in enumerate(rows)
        ]
        manifest.write(Path("runs/all.jsonl"), marked)
        assert cli.run(["build", "contribution", "runs/all.jsonl", "--out", "runs/contribution", "--no-check"]) == 0
    if name == "hyper":
        chain = "".join(f"<{part}>It rings.</{part}>" for part in ("planning", "caption", "reasoning", "summary"))
        manifest.write(
            Path("runs/data-demo/sari/sft-structured.jsonl"), [replace(row, reasoning=chain) for row in rows]
        )


@pytest.mark.weights
@pytest.mark.parametrize("name", SMALL)
def test_profile_cpu_takes_a_step_and_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build(name)
    code = cli.run(["train", name, "--profile", "cpu", "--out", "runs/run", *QUICK, *SMALL[name]])
    assert code == 0, capfd.readouterr().err[-3000:]
    logged = [json.loads(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    kinds = {key.partition("/")[0] for row in logged for key in row if "/" in key}
    assert kinds >= {"gkd": {"gkd"}, "audio-r1": {"grpo"}}.get(name, {"sft", "grpo"})
    evaluations = sorted(path.parent.name for path in Path("runs/run/eval").rglob("metrics.json"))
    assert len(evaluations) >= 2, evaluations
