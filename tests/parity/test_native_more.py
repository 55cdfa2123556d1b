"""Voxtral, Granite Speech, Phi-4-multimodal and Gemma 3n where they differ from all others: features, multipliers,
adapters, windows, and the files they are read from. What all families share is in tests/families.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    GraniteForCausalLM,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    PreTrainedModel,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from builders import largest, sound
from earwise.audio import decode
from earwise.data.manifest_path import STARTER
from earwise.errors import AudioError, ModelError
from earwise.forest import TokenPath
from earwise.models import base, lora_checkpoint
from earwise.models.families import gemma3n, granite_speech, native, phi4_multimodal, voxtral
from earwise.models.families.native import Native, Row
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.prompts import ChatTemplate, render
from earwise.types import Audio, Text, Turn, Waveform
from families import native_more
from families.forests import conversation, scores, turn
from families.tiny import Tiny

DECODERS = ("model.language_model.layers.", "model.layers.")
NAMES = ("voxtral", "granite_speech", "phi4_multimodal", "gemma3n")
TALK = (
    Turn("system", (Text("Be brief."),)),
    Turn("user", (Audio("0.wav"), Text("What is it?"))),
    Turn("assistant", (Text("A bell."),)),
    Turn("user", (Text("And"), Audio("1.wav"))),
)


def build(name: str) -> Tiny:
    return getattr(native_more, name)()  # type: ignore[no-any-return]


def written(template: ChatTemplate, turns: tuple[Turn, ...] = TALK) -> str:
    return "".join("@" if span.audio else span.text for span in render(turns, template, generate=True))


def test_chat_formats() -> None:
    assert written(voxtral.TEMPLATE) == (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST][BEGIN_AUDIO]@What is it?[/INST]A bell.</s>"
        "[INST]And[BEGIN_AUDIO]@[/INST]"
    )
    assert written(granite_speech.TEMPLATE) == (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>@What is it?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>A bell.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>And@<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
    )
    assert granite_speech.SYSTEM in written(granite_speech.TEMPLATE, TALK[1:])
    assert written(phi4_multimodal.TEMPLATE) == (
        "<|system|>Be brief.<|end|><|user|>@What is it?<|end|><|assistant|>A bell.<|end|>"
        "<|user|>And@<|end|><|assistant|>"
    )
    assert written(gemma3n.TEMPLATE) == (
        "<bos><start_of_turn>user\nBe brief.\n\n\n\n<start_of_audio>@<end_of_audio>\n\nWhat is it?<end_of_turn>\n"
        "<start_of_turn>model\nA bell.<end_of_turn>\n"
        "<start_of_turn>user\nAnd\n\n<start_of_audio>@<end_of_audio>\n\n<end_of_turn>\n<start_of_turn>model\n"
    )
    assert written(gemma3n.TEMPLATE, TALK[1:2]).startswith("<bos><start_of_turn>user\n\n\n<start_of_audio>@")


def released(row: Row) -> tuple[Any, Any]:
    """Config and extractor at released size."""
    if row is voxtral.ROW:
        return VoxtralConfig(audio_token_id=24), WhisperFeatureExtractor(feature_size=128)
    if row is granite_speech.ROW:
        return GraniteSpeechConfig(), granite_speech.LogMel()
    if row is gemma3n.ROW:
        return Gemma3nConfig(), Gemma3nAudioFeatureExtractor()
    scaling = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = Phi4MultimodalConfig(
        num_attention_heads=24, rope_scaling=scaling, partial_rotary_factor=0.75, sliding_window=262144
    )
    return config, Phi4MultimodalFeatureExtractor()


@pytest.mark.parametrize(
    ("row", "per_s", "longest_s", "tokens"),
    [
        # 30 s windows of 1500 states, four to a token
        (voxtral.ROW, 12.5, 2400.0, {1: 375, 480000: 375, 480001: 750}),
        # 20 ms frames, three tokens to fifteen of them: 16000 samples are 101 mel frames, 50 frames, 4 windows
        (granite_speech.ROW, 10.0, 204.8, {256: 0, 257: 3, 16000: 12, 480000: 300}),
        # 25 ms windows every 10 ms: 16000 samples are 98 frames, a token to eight; 4096 tokens hold 327.68 s
        (phi4_multimodal.ROW, 12.5, 327.68, {399: 0, 400: 1, 16000: 13, 480000: 375}),
        (gemma3n.ROW, 6.25, 30.0, {512: 0, 513: 188, 480000: 188}),
    ],
)
def test_counts_at_released_size(row: Row, per_s: float, longest_s: float, tokens: dict[int, int]) -> None:
    config, extractor = released(row)
    spec = row.spec(config, extractor)
    assert (spec.sample_rate, spec.max_s, spec.tokens_per_s) == (16000, longest_s, per_s)
    assert {samples: row.tokens(config, extractor, samples) for samples in tokens} == tokens


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_two_clips_of_one_length_in_the_class_s_own_batch(name: str) -> None:
    """Nothing is padded then, so the class itself is the reference, unchanged."""
    family, waveforms = build(name), {0: sound(0.9), 1: sound(0.9, 700.0, 1)}
    path = conversation(family.model, [turn("user", "Which is louder?", 0, 1)], waveforms)
    assert largest([scores(family.model, path, waveforms) - family.reference(path.ids, list(waveforms.values()))]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_is_saved(name: str, tmp_path: Path) -> None:
    family = build(name)
    family.model.save(tmp_path)
    classes = (VoxtralForConditionalGeneration, GraniteSpeechForConditionalGeneration, Phi4MultimodalForCausalLM)
    kinds = dict(zip(NAMES, (*classes, Gemma3nForConditionalGeneration), strict=True))
    with native_more.without_images():
        read = kinds[name].from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert read.config.architectures == [kinds[name].__name__]
    if name in lora_checkpoint.PUBLISHED:  # files keep the names that other programs read
        assert {key.split(".")[0] for key in load_file(tmp_path / "model.safetensors")} == {
            theirs.split(".")[0] for _, theirs in lora_checkpoint.PUBLISHED[name]
        }
    ids = family.model.tokenizer.encode("What is it?")
    ours = scores(family.model, conversation_of(ids), {})
    factor = native_more.GRANITE_TEXT["logits_scaling"] if name == "granite_speech" else 1.0
    assert largest([read(input_ids=torch.tensor([ids])).logits[0] / factor - ours]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_recomputed_layers(name: str) -> None:
    """Also where layers share keys and values through a dictionary that they fill as they run."""
    waveforms = {0: sound(0.6)}
    found: list[dict[str, torch.Tensor]] = []
    for recompute in (False, True):
        model = build(name).model
        if recompute:
            assert enable_gradient_checkpointing(model.module) >= 2
        model.module.train()
        trained = {key: value for key, value in model.module.named_parameters() if ".self_attn." in key}
        trained = {key: value.requires_grad_() for key, value in trained.items() if key.startswith(DECODERS)}
        path = conversation(model, [turn("user", "What is it?", 0)], waveforms)
        scores(model, path, waveforms).logsumexp(1).sum().backward()
        found.append({key: value.grad for key, value in trained.items() if value.grad is not None})
    plain, recomputed = found
    assert plain.keys() == recomputed.keys() and len(plain) >= 4
    assert largest([plain[key] - recomputed[key] for key in plain]) < 1e-4


def conversation_of(ids: list[int]) -> TokenPath:
    """Bare tokens as a path."""
    return TokenPath(tuple(ids), (False,) * len(ids), (-1,) * len(ids))


# Granite Speech


def test_granite_features() -> None:
    """Against transformers' numpy spectrogram (another implementation than torch's) on a recording and on noise, and
    against the class's own count."""
    clip = decode(STARTER / "clips" / "dog_0.ogg", 16000)
    noise = np.random.default_rng(0).standard_normal(4321).astype(np.float32)
    log_mel = granite_speech.LogMel()
    bank = mel_filter_bank(257, 80, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
    for wave in (clip, noise, noise[:257], noise[:3200]):
        log = spectrogram(
            wave, window_function(400, "hann"), 400, 160, fft_length=512, power=2.0, pad_mode="reflect",
            mel_filters=bank, mel_floor=1e-10, log_mel="log10",
        ).T  # fmt: skip
        scaled = np.maximum(log, log.max() - 8.0) / 4 + 1
        joined = scaled[: len(scaled) // 2 * 2].reshape(-1, 160)
        ours = log_mel(wave)
        assert ours.shape == joined.shape == (log_mel.frames(len(wave)), 160)
        assert largest([ours - torch.from_numpy(joined)]) < 1e-4
    own = SimpleNamespace(melspec_kwargs={"hop_length": 160}, projector_window_size=15, projector_downsample_rate=5)
    lengths = [257, 319, 320, 4799, 4800, 16000, 47999, 48000, 480000]
    theirs = GraniteSpeechFeatureExtractor._get_num_audio_features(own, lengths)
    assert [granite_speech.ROW.tokens(GraniteSpeechConfig(), log_mel, samples) for samples in lengths] == theirs


@torch.no_grad()
def test_granite_scores_are_those_of_its_text_model() -> None:
    """Granite's own text class divides by `logits_scaling`; transformers' speech class does not."""
    module = native_more.plain_granite()
    text = GraniteForCausalLM(module.config.text_config).eval()
    text.model.load_state_dict(module.model.language_model.state_dict())
    text.lm_head.load_state_dict(module.lm_head.state_dict())
    model = build("granite_speech").model
    ids = model.tokenizer.encode("Two plus two?")
    ours, given = scores(model, conversation_of(ids), {}), torch.tensor([ids])
    assert largest([text(input_ids=given).logits[0] - ours]) < 1e-4
    assert largest([module(input_ids=given).logits[0] - ours]) > 0.1


def test_granite_hears_the_same_while_it_is_trained() -> None:
    """Batch normalisation keeps its statistics and nothing is dropped."""
    model = build("granite_speech").model
    waveforms = [sound(0.7)]
    still = model.project_audio(model.encode_audio(waveforms))
    before = copy.deepcopy(model.module.state_dict())
    model.module.train()
    moving = model.project_audio(model.encode_audio(waveforms))
    assert torch.equal(still[0], moving[0])
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


# Adapters that lie beside the weights


def with_adapter(module: Any, folder: Path, place: Path, targets: list[str] | str, marks: Any, extractor: Any) -> Any:
    """Write a checkpoint of the class and a random adapter as transformers writes them; the class, adapter on."""
    module.save_pretrained(folder)
    marks.save(str(folder / "tokenizer.json"))
    extractor.save_pretrained(folder)
    module.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    PreTrainedModel.save_pretrained(module, place)
    return module.eval()


def granite_with_adapter(folder: Path) -> Any:
    module = native_more.plain_granite()
    module.config.has_lora_adapter = True
    extractor = granite_speech.LogMel(n_mels=native_more.MELS)
    return with_adapter(module, folder, folder, ["q_proj", "v_proj"], native_more.granite_tokenizer(), extractor)


def phi4_with_adapter(folder: Path) -> Any:
    layers = r"model\.layers\.\d+\.(self_attn|mlp)\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
    marks = native_more.tokenizer(native_more.PHI4_MARKS, {})
    extractor = Phi4MultimodalFeatureExtractor(feature_size=native_more.MELS)
    return with_adapter(native_more.plain_phi4(), folder, folder / "speech-lora", layers, marks, extractor)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "make"), [("granite_speech", granite_with_adapter), ("phi4_multimodal", phi4_with_adapter)]
)
def test_adapter_is_merged_and_saved_merged(name: str, make: Callable[[Path], Any], tmp_path: Path) -> None:
    module = make(tmp_path / "released")
    ids = build(name).model.tokenizer.encode("What is it?")
    factor = native_more.GRANITE_TEXT["logits_scaling"] if name == "granite_speech" else 1.0
    theirs = module(input_ids=torch.tensor([ids])).logits[0] / factor
    model = base.load(str(tmp_path / "released"), device="cpu")
    path = conversation_of(ids)
    assert largest([scores(model, path, {}) - theirs]) < 1e-4
    module.disable_adapters()
    assert largest([module(input_ids=torch.tensor([ids])).logits[0] / factor - theirs]) > 1e-2
    model.save(tmp_path / "saved")
    again = native.load(name, tmp_path / "saved")
    assert torch.equal(scores(again, path, {}), scores(model, path, {}))
    assert not list((tmp_path / "saved").rglob("adapter_*"))


def test_adapter_under_the_names_of_transformers_4(tmp_path: Path) -> None:
    granite_with_adapter(tmp_path)
    new = native.load("granite_speech", tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    old = {key.replace("model.language_model.", "language_model.model."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    save_file(old, file)
    theirs = native.load("granite_speech", tmp_path).module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in new.module.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: not here"),
        (lambda folder: edit(folder, use_dora=True), "use_dora True is not plain LoRA"),
        (lambda folder: rename(folder, "q_proj", "query"), r"unexpected: .*self_attn\.query"),
        (lambda folder: rename(folder, "lora_A", "lora_B"), r"missing: .*self_attn\.q_proj"),
    ],
)
def test_adapters_that_cannot_be_merged(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    granite_with_adapter(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        native.load("granite_speech", tmp_path)
    assert "\n" not in str(caught.value)


def edit(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rename(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    state = {key: value for key, value in load_file(file).items() if new not in key}
    save_file({key.replace(old, new): value for key, value in state.items()}, file)


def test_phi4_without_its_speech_adapter(tmp_path: Path) -> None:
    phi4_with_adapter(tmp_path)
    for file in (tmp_path / "speech-lora").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=r"speech-lora.*: not here"):
        native.load("phi4_multimodal", tmp_path)


# Sequences that the forest cannot decode exactly


@torch.no_grad()
def test_gemma_refuses_what_does_not_fit_its_window() -> None:
    family = native_more.gemma3n(sliding_window=40)
    ids = refused_beyond(family, 40)
    family.model._longest = None
    apart = (scores(family.model, conversation_of(ids), {}) - family.reference(ids, [])).abs().amax(1)
    assert float(apart[:40].max()) < 1e-4 and float(apart[40]) > 1e-3


@torch.no_grad()
def test_phi4_refuses_what_longrope_turns_otherwise() -> None:
    family = build("phi4_multimodal")
    ids = refused_beyond(family, 700)
    assert largest([family.reference(ids, [])[:700] - family.reference(ids[:700], [])]) > 1e-2


def refused_beyond(family: Tiny, longest: int) -> list[int]:
    """Check that `longest` tokens are decoded as the class does and one more is refused; returns those."""
    ids = family.model.tokenizer.encode("".join(chr(97 + n * n % 26) for n in range(longest + 1)))
    ours = scores(family.model, conversation_of(ids[:longest]), {})
    assert largest([ours - family.reference(ids[:longest], [])]) < 1e-4
    with pytest.raises(ModelError, match=f"{longest + 1} tokens is longer than the {longest}"):
        scores(family.model, conversation_of(ids), {})
    return ids


@torch.no_grad()
def test_phi4_hears_more_than_one_block_of_40_s() -> None:
    family = build("phi4_multimodal")
    wave = sound(41.0)
    path = conversation(family.model, [turn("user", "What?", 0)], {0: wave})
    assert path.clips.count(0) == 513
    assert largest([scores(family.model, path, {0: wave}) - family.reference(path.ids, [wave])]) < 1e-4


# Gemma 3n


def test_gemma_carries_images_and_skips_keys_of_sharing_layers(tmp_path: Path) -> None:
    model = build("gemma3n").model
    model.save(tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    images = {
        "model.vision_tower.timm_model.conv_stem.weight": torch.randn(2, 3),
        "model.embed_vision.embedding.weight": torch.randn(8, 8),
    }
    unused = {"model.language_model.layers.3.self_attn.k_proj.weight": torch.randn(16, 32)}
    save_file(load_file(file) | images | unused, file, {"format": "pt"})
    loaded = native.load("gemma3n", tmp_path / "one")
    assert isinstance(loaded, Native)
    assert all(
        torch.equal(value, model.module.state_dict()[name]) for name, value in loaded.module.state_dict().items()
    )
    loaded.save(tmp_path / "two")
    written = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in images.items())
    assert not unused.keys() & written.keys()


def test_gemma_fills_short_clips_up() -> None:
    """A clip of 0.32 s gives two states of its own; the other rows are the padding token's, the same in every clip."""
    model = build("gemma3n").model
    waveforms: list[Waveform] = [sound(0.32), sound(1.9, 900.0)]
    heard = model.encode_audio(waveforms)
    assert [len(states) for states in heard] == [2, 12]
    short, long = model.project_audio(heard)
    assert short.shape == long.shape == (13, 32 + 4 * 8)
    assert torch.equal(short[2:], long[12:].expand(11, -1))
    assert torch.equal(short[:, 32:], long[:, 32:])
    with pytest.raises(AudioError, match=r"2\.10 s is longer than the 2 s"):
        model.encode_audio([sound(2.1)])
