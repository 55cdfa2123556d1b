"""Qwen2-Audio against records of transformers' class: chat format, lengths, features, every stage, logits (the golden
files' README describes the records).

The checkpoint is written under the published tensor names and read by `qwen2_audio.load`, so the renaming is part of
the test.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor
from transformers import Qwen2AudioConfig

from builders import byte_tokenizer
from earwise.audio import num_samples
from earwise.forest import TokenPath, build_tree, insert_audio_embeddings, pack
from earwise.models.families.qwen2_audio import Qwen2Audio, load, state_count, token_count
from earwise.models.parts.attention import TreeAttention
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import AUDIO_PLACEHOLDER, QWEN2_AUDIO, render
from earwise.types import Audio, Text, Turn
from golden.fill import TOLERANCE_FACTOR, assert_matches_record, formula_sound, formula_weight

Record = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture
def models(golden: Callable[[str], Record], folder: Path) -> dict[bool, Qwen2Audio]:
    """The model of the golden file, trimmed and padded, from one published-style checkpoint."""
    record = golden("qwen2audio_model.json")
    if not (folder / "config.json").exists():
        configs = record["configs"]
        text = configs["text"] | {"rope_parameters": {"rope_type": "default", "rope_theta": configs["rope_theta"]}}
        config = Qwen2AudioConfig(
            audio_config=configs["audio"], text_config=text, audio_token_index=configs["audio_token_index"]
        )
        config.save_pretrained(folder)
        save_file(
            {name: formula_weight(name, shape) for name, shape in record["checkpoint_keys"]},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        byte_tokenizer(configs["audio_token_index"]).save(str(folder / "tokenizer.json"))
    return {trim: load(folder, trim=trim) for trim in (True, False)}


def rows(case: Record, placeholder: int) -> Iterator[list[int]]:
    """The unpadded ids of each row; long rows are recorded as a rule."""
    recorded = case["input_ids_left_padded"]
    if isinstance(recorded, list):
        for row, length in zip(recorded, case["attention_mask_sum"], strict=True):
            yield row[len(row) - length :]
        return
    lasts = recorded["last"] if isinstance(recorded["last"], list) else [recorded["last"]] * len(case["audio_tokens"])
    for tokens, last in zip(case["audio_tokens"], lasts, strict=True):
        ids: list[int] = []
        for piece in recorded["row"].split(" + "):
            items, _, times = piece.partition("*")
            piece_ids = [last if item == "last" else int(item) for item in items.strip("[]").split(",")]
            ids += piece_ids * (tokens if times else 1)
        assert ids.count(placeholder) == tokens
        yield ids


def turns(conversation: list[Record]) -> tuple[Turn, ...]:
    """The recorded messages as turns."""
    recorded_turns = []
    for message in conversation:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turn_parts = (Text(part["text"]) if part["type"] == "text" else Audio(part["audio_url"]) for part in parts)
        recorded_turns.append(Turn(message["role"], tuple(turn_parts)))
    return tuple(recorded_turns)


def test_chat_template(golden: Callable[[str], Record], models: dict[bool, Qwen2Audio]) -> None:
    model = models[True]
    cases = golden("qwen2audio_model.json")["chat"]
    assert cases
    for case in cases:
        conversation = turns(case["conversation"])
        spans = render(conversation, QWEN2_AUDIO, generate=case["add_generation_prompt"])
        assert "".join(AUDIO_PLACEHOLDER if span.audio else span.text for span in spans) == case["rendered"]
        # Clips longer than the window are cut by the caller's choice: `long_audio: truncate`.
        samples = [num_samples(min(seconds, model.spec.max_s), 16000) for seconds in case["audio_seconds"]]
        assert [-(-count // HOP_SAMPLES) for count in samples] == case.get("mel_frames", [])
        assert [model.audio_tokens(count) for count in samples] == case.get("audio_tokens_per_audio", [])
        path = conversation_path(
            model, conversation, range(len(samples)), samples, generate=case["add_generation_prompt"]
        )
        assert path.ids.count(model.placeholder_id) == case.get("audio_token_total", 0)
        text = "".join(case["rendered"].split(AUDIO_PLACEHOLDER))
        assert [token for token in path.ids if token != model.placeholder_id] == model.tokenizer.encode_template(text)


def test_lengths(golden: Callable[[str], Record]) -> None:
    record = golden("qwen2audio_model.json")
    assert (
        record["lengths_columns"] == ["mel_frames", "after_conv2", "audio_tokens_after_pooling"] and record["lengths"]
    )
    assert [[frames, state_count(frames), token_count(frames)] for frames, _, _ in record["lengths"]] == record[
        "lengths"
    ]


@torch.no_grad()
def test_stages_and_logits(golden: Callable[[str], Record], models: dict[bool, Qwen2Audio]) -> None:
    record = golden("qwen2audio_model.json")
    # Doubled, since CPUs sum convolutions in different orders: on some, conv1 differs by 6.7 times the record.
    limits = {
        stage: 2 * TOLERANCE_FACTOR * limit for stage, limit in record["float32_vs_float64_max_abs_difference"].items()
    }
    padded, trimmed = models[False], models[True]
    tower = padded.module.model.audio_tower
    outputs: dict[str, Tensor] = {}
    stages = {"conv1": tower.conv1, "conv2": tower.conv2, "audio_tower": tower}
    stages |= {f"encoder_layer{number}": layer for number, layer in enumerate(tower.layers)}
    for stage, module in stages.items():
        module.register_forward_hook(
            lambda _m, _i, out, stage=stage: outputs.update(
                {stage: out if isinstance(out, Tensor) else out.last_hidden_state}
            )
        )
    assert record["cases"]
    for number, case in enumerate(record["cases"]):
        waveforms = [formula_sound(audio, case["rate"]) for audio in case["audios"]]
        assert_matches_record(
            torch.stack([padded.features(waveform) for waveform in waveforms]),
            case["input_features"],
            1e-5,
            f"case {number} features",
        )
        encoder_states = {model.trims_padding: model.encode_audio(waveforms) for model in (padded, trimmed)}
        outputs["projector"] = padded.module.model.multi_modal_projector(outputs["audio_tower"])
        for stage, want in case["stages"].items():
            assert_matches_record(outputs[stage], want, limits[stage], f"case {number} {stage}")
        for model in (padded, trimmed):
            connected = model.project_audio(encoder_states[model.trims_padding])
            for clip, want in zip(connected, case["projector_valid"], strict=True):
                label = f"case {number} projector, trims={model.trims_padding}"
                assert_matches_record(clip, want, limits["projector"], label)
            for clip, ids in enumerate(rows(case, model.placeholder_id)):
                clip_of_token = tuple(clip if token == model.placeholder_id else -1 for token in ids)
                forest = pack([build_tree([TokenPath(tuple(ids), (False,) * len(ids), clip_of_token)])])
                embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, dict(enumerate(connected)))
                scores = model.logits(model.decode(embeddings, forest.positions, TreeAttention(forest)))
                assert_matches_record(
                    scores,
                    case["logits_valid_rows"][clip],
                    limits["logits"],
                    f"case {number} logits, trims={model.trims_padding}",
                )
                assert int(scores[-1].argmax()) == case["argmax_last"][clip]


def test_names_and_prefixes_of_parameters(golden: Callable[[str], Record], models: dict[bool, Qwen2Audio]) -> None:
    shapes = {name: list(value.shape) for name, value in models[True].module.state_dict().items()}
    assert shapes == dict(golden("qwen2audio_model.json")["in_memory_keys"])
    for name, _ in models[True].module.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes in models[True].parameter_prefixes.values()) == 1, name
