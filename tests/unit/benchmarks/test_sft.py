"""The benchmarks of SFT, evaluation and growth at their smallest, and the batches that transformers gets there."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from builders import tone
from earwise.errors import ConfigError
from earwise.forest import TokenPath
from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.embedded.model import POOL, EmbeddedModule
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix, pool_states

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import evaluate
import growth
import sft_step
from baselines.collator import IGNORED, ClipQuestion, Collator, MaskedBody
from baselines.hf_models import EmbeddedBody, as_transformers_encoder
from baselines.models import random_qwen2_audio
from baselines.workload import SHAPES, workload

EXTRACTOR = WhisperFeatureExtractor(feature_size=16, chunk_length=2)


def row(ids: list[int], num_targets: int, seconds: float) -> ClipQuestion:
    """A row whose last tokens are targets."""
    flags = [index >= len(ids) - num_targets for index in range(len(ids))]
    return ClipQuestion(TokenPath(tuple(ids), tuple(flags), (-1,) * len(ids)), tone(seconds))


def test_the_collator_pads_on_the_right_for_training_and_on_the_left_for_generation() -> None:
    rows = [row([5, 6, 7], 2, 1.0), row([8, 9], 1, 0.5)]
    batch = Collator(EXTRACTOR, pad_id=1)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]
    assert batch["input_features"].shape == (2, 16, 200)
    assert batch["feature_attention_mask"].sum(1).tolist() == [100, 50]
    left_padded = Collator(EXTRACTOR, pad_id=1, pad_left=True)(rows)
    assert left_padded["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9]]
    assert left_padded["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert "labels" not in left_padded


def test_trimmed_features_equal_padded_ones_up_to_the_longest_clip() -> None:
    waveforms = [tone(0.7331), tone(0.4)]
    padded = Collator(EXTRACTOR, 1).features(waveforms)
    trimmed = Collator(EXTRACTOR, 1, trimmed=True).features(waveforms)
    assert trimmed["input_features"].shape[2] == 74  # one frame per started 10 ms
    assert torch.allclose(trimmed["input_features"], padded["input_features"][:, :, :74], atol=1e-5)
    assert torch.equal(trimmed["feature_attention_mask"], padded["feature_attention_mask"][:, :74])


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_padded_batch_has_the_states_of_each_clip_alone(trimmed: bool) -> None:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "d_model": 24, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    encoder = whisper.WhisperEncoder(sizes | {"num_mel_bins": 16, "max_source_positions": 100}).eval()
    torch.nn.init.normal_(encoder.embed_positions.weight)
    tiny = LlamaSizes(20, 12, 8, 1, 2, 2)
    embedded_body = EmbeddedBody(EmbeddedModule(encoder, LayerMix(3, 24, 12), LlamaDecoder(tiny)), 3)
    embedded_body.encoder = as_transformers_encoder(encoder)
    body = MaskedBody(embedded_body)
    waveforms = [tone(0.7331), np.float32(0.3) * tone(0.4, 900.0)]
    features = Collator(EXTRACTOR, 1, trimmed=trimmed).features(waveforms)
    with torch.no_grad():
        batch = body.encode(features["input_features"], features["feature_attention_mask"])
        for states, waveform in zip(batch, waveforms, strict=True):
            (alone,) = whisper.layer_states(encoder, [whisper.log_mel(waveform, 16)])
            assert torch.allclose(states, pool_states(alone, POOL), atol=1e-5)


def test_earwise_and_the_trainer_reach_the_same_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft_step.main(["--quick", "--out", str(tmp_path / "sft.json")])
    result = json.loads((tmp_path / "sft.json").read_text())
    assert result["machine"]["torch"] == torch.__version__
    (measured,) = result["results"]
    losses = measured["losses"]["earwise"]
    assert losses == pytest.approx(measured["losses"]["trainer-padded"], rel=1e-5)
    assert len(set(losses)) == len(losses)  # other clips and other weights in every step
    assert measured["earwise_phases_s"]["hear"] > 0  # no clip is cached from another step
    assert measured["relative_gradient_difference"]["trainer-padded"] < 1e-5
    assert measured["examples_per_s"]["earwise"] == pytest.approx(3 / measured["seconds_per_step"]["earwise"])
    assert json.loads(capsys.readouterr().out)["results"] == result["results"]


def test_no_clip_occurs_in_two_steps(tmp_path: Path) -> None:
    rows = sft_step.questions(tmp_path, 6, 2, 1.0)
    assert [row.audio_paths[0].name for row in rows] == [f"{number // 2}.wav" for number in range(12)]
    assert len({path.read_bytes() for path in tmp_path.glob("*.wav")}) == 6
    items = workload(random_qwen2_audio("tiny"), SHAPES["quick"], 6).prompts
    assert len({prompt.waveforms[0].tobytes() for prompt in items}) == 6


def test_the_number_of_bundled_questions_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1000 clips with 10"):
        sft_step.questions(tmp_path, 1000, 10, 1.0)


def test_evaluate_gives_the_same_greedy_answers_and_marks_extrapolation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["--quick", "--out", str(tmp_path / "evaluate.json")])
    result = json.loads((tmp_path / "evaluate.json").read_text())
    greedy, samples = result["greedy"], result["samples"]
    assert greedy["same_answers"] == {"batch-loop": 1.0}
    assert (greedy["items"], greedy["paired_items"], greedy["extrapolated"]) == (6, 4, True)
    assert (samples["items"], samples["paired_items"], samples["extrapolated"]) == (3, 3, False)
    assert samples["sampled_tokens"] >= 3 * 4
    assert [goal["goal"] for goal in (*greedy["goals"], *samples["goals"])] == [3.0, 8.0]


def test_growth_measures_every_size_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = ("group", "trees", "questions", "clips", "rows")
    growth.main(["--quick", "--axes", *axes, "--out", str(tmp_path / "growth.json")])
    result = json.loads(capsys.readouterr().out)
    one_tree, two_trees = result["axes"]["trees"]
    assert two_trees["decoder_tokens"] > 1.5 * one_tree["decoder_tokens"]
    assert one_tree["step_s"] == pytest.approx(sum(one_tree["seconds"].values()))
    assert result["axes"]["group"][0]["distinct_share"] == 1.0
    assert all(point["step_s"] > 0 for axis in ("questions", "clips") for point in result["axes"][axis])
    assert [point["rows"] for point in result["axes"]["rows"] if 0 < point["again_s"] < 60] == [40, 400]
    drawn = ("--before", str(tmp_path / "growth.json"), "--plot", str(tmp_path / "growth.png"))
    growth.main(["--replot", str(tmp_path / "growth.json"), *drawn])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
