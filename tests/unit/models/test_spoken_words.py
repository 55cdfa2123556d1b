"""Spoken words travel with encoder states through every cache, and stand in the slots that a clip's length gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import tone
from earwise import cli
from earwise.commands.training import words
from earwise.errors import ModelError
from earwise.models import base
from earwise.models.embedded import spoken_words
from earwise.models.embedded.connector import parse_connector_spec
from earwise.models.embedded.spoken_words import StoredWords, WordSlots, append_rows, split_rows
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint
from families.embedded import random_base_weights, write_base_weights, write_recogniser

LABELS = {
    "kind": "labels", "listener": {"labels": 4, "components": 8, "width": 8},
    "facets": [{"labels": 5, "shown": 2, "tokens": 2}, {"labels": 4}, {"labels": 3}],
}  # fmt: skip
SPEECH, OTHER = tone(1.0, 300.0), tone(0.7, 900.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights and a recogniser at test size, where the real ones are expected."""
    home = tmp_path / "home"
    write_base_weights(home, random_base_weights())
    monkeypatch.setenv("EARWISE_HOME", str(home))
    write_recogniser(home)


def start_model(folder: Path) -> Any:
    """The embedded model with the connector `labels`, whose classifier takes one tone for speech and the other not."""
    model: Any = base.load("embedded-blank", device="cpu", trim=True, connector=LABELS)
    speech, other = (
        model.module.connector.mix.mix_layers(states)[:2].flatten() for states in model.encode_audio([SPEECH, OTHER])
    )
    with torch.no_grad():
        model.module.connector.mix.gates.copy_(torch.tensor([0.3, -0.2, 0.1]))
        difference = model.module.connector.classify.weight[-1]
        difference.copy_(20 * (speech - other) / (speech - other).square().sum())
        middle = (speech + other) / 2
        model.module.connector.classify.weight[-3:-1].zero_()
        model.module.connector.classify.bias[-3:].copy_(torch.stack([difference @ middle] * 2 + [torch.tensor(0.0)]))
    model.save(folder)
    return model


def with_words(tmp_path: Path, *options: str) -> Any:
    """The model with word slots, made by the command."""
    start_model(tmp_path / "start")
    command = ["build", "words", "--model", str(tmp_path / "start"), "--out", str(tmp_path / "words"), *options]
    assert cli.run(command) == 0
    return base.load(str(tmp_path / "words"), device="cpu")


def test_stored_words_survive_half_precision() -> None:
    words = StoredWords(480_000, (0, 1, 255, 256, 49_151))
    states = torch.randn(3, 5, 16)
    longer = append_rows(states, words)
    for dtype in (torch.float16, torch.bfloat16):
        own, stored = split_rows(longer.to(dtype))
        assert stored == words and torch.equal(own, states.to(dtype))
    too_long = StoredWords(1, tuple(range(500)))
    assert split_rows(append_rows(states, too_long))[1].ids == tuple(range(spoken_words.MAX_IDS))


def test_slots_by_hand() -> None:
    slots = WordSlots(per_s=4, extra=2, most=20)
    assert WordSlots() == WordSlots(words.PER_SECOND, words.EXTRA, words.MOST), "the command has the same defaults"
    assert [slots.count(seconds) for seconds in (0.1, 1.0, 1.1, 30.0)] == [3, 6, 7, 20]
    with pytest.raises(ModelError, match="most between 1"):
        WordSlots(most=0)


def test_words_fill_slots_behind_the_tokens_of_the_connector(tmp_path: Path) -> None:
    start = start_model(tmp_path / "reference")
    model = with_words(tmp_path, "--per-second", "6", "--extra", "2", "--most", "10")
    assert model.connector_spec.words == WordSlots(per_s=6, extra=2, most=10, gate=3)
    clips = [SPEECH, OTHER, tone(3.0, 900.0)]
    states = model.encode_audio(clips)
    stored = [split_rows(clip_states)[1] for clip_states in states]
    assert [heard.samples for heard in stored] == [16000, 11200, 48000]
    assert len(stored[0].ids) > 2 and not stored[1].ids, "only one tone is speech to the gate"
    embeddings = model.project_audio(states)
    assert [len(rows) for rows in embeddings] == [model.audio_tokens(len(clip)) for clip in clips]
    plain = start.project_audio(start.encode_audio(clips))
    lead = len(model.tokenizer.encode(" Words:"))
    assert [len(rows) - len(own) for rows, own in zip(embeddings, plain, strict=True)] == [
        lead + 8,
        lead + 7,
        lead + 10,
    ]
    newline = model.embed(torch.tensor(model.tokenizer.encode("\n")))
    for rows, own, heard in zip(embeddings, plain, stored, strict=True):
        assert torch.equal(rows[: len(own)], own)
        slots = rows[len(own) + lead :]
        shown = heard.ids[: len(slots)]
        assert torch.equal(slots[: len(shown)], model.embed(torch.tensor(shown, dtype=torch.long)))
        assert torch.equal(slots[len(shown) :], newline.expand(len(slots) - len(shown), -1))


def test_whispers_decoder_waits_for_speech_and_runs_once(tmp_path: Path) -> None:
    model = with_words(tmp_path)
    folder = tmp_path / "cache"
    cache = EncoderCache(model, folder=folder)
    (silent,) = cache.encoder_states([OTHER])
    assert not model._words.is_loaded and not split_rows(silent)[1].ids
    (spoken,) = cache.encoder_states([SPEECH])
    assert model._words.is_loaded
    again = base.load(str(tmp_path / "words"), device="cpu")
    (read,) = EncoderCache(again, folder=folder).encoder_states([SPEECH])
    assert torch.equal(read, spoken) and split_rows(read)[1].ids and not again._words.is_loaded
    fingerprint = encoder_fingerprint(model)
    assert encoder_fingerprint(again) == fingerprint
    model.module.speech_gate.bias.add_(1.0)
    assert encoder_fingerprint(model) != fingerprint, "another gate hears other words"


def test_saved_models_are_equal_and_models_without_slots_unchanged(tmp_path: Path) -> None:
    model = with_words(tmp_path)
    model.save(tmp_path / "again")
    loaded: Any = base.load(str(tmp_path / "again"), device="cpu")
    assert loaded.connector_spec == model.connector_spec
    (first,), (second,) = (m.project_audio(m.encode_audio([SPEECH])) for m in (model, loaded))
    assert torch.equal(first, second)
    start = load_file(tmp_path / "start" / "trained.safetensors")
    words = load_file(tmp_path / "words" / "trained.safetensors")
    assert words.keys() - start.keys() == {"speech_gate.weight", "speech_gate.bias"}
    marker = json.loads((tmp_path / "start" / "earwise.json").read_text())
    assert "words" not in marker["connector"]


def test_clips_are_transcribed_without_a_gate(tmp_path: Path) -> None:
    model: Any = base.load("embedded-blank", device="cpu", trim=False)
    model.set_connector_spec(parse_connector_spec({"words": {"most": 4}}))
    (states,) = model.encode_audio([OTHER])
    assert model._words.is_loaded and split_rows(states)[1].samples == len(OTHER)
    (rows,) = model.project_audio([states])
    assert len(rows) == model.audio_tokens(len(OTHER)) == 14 + 3 + len(model.tokenizer.encode(" Words:")) + 4


def test_the_command_refuses_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_words(tmp_path)
    command = ["build", "words", "--model", str(tmp_path / "words"), "--out", str(tmp_path / "more")]
    assert cli.run(command) == 2
    assert "is not the embedded model without word slots" in capsys.readouterr().err
    command = ["build", "words", "--model", str(tmp_path / "start"), "--out", str(tmp_path / "words")]
    assert cli.run(command) == 2
    assert f"{tmp_path / 'words'}: exists already" in capsys.readouterr().err
