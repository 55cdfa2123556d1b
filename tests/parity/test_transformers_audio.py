"""Voxtral, Granite Speech, Phi-4-multimodal, Gemma 3n, Gemma 4 and Audio Flamingo Next: chat formats, token counts at
released size, batches of one length, saved files, recomputed layers, and LoRA adapters that checkpoints contain. What
all families share is in tests/families; what only one has, in the file of that family.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.integrations import PeftAdapterMixin

from builders import max_abs, tone
from earwise.config.stages import TrainableConfig
from earwise.errors import ModelError
from earwise.forest import TokenPath
from earwise.models import base, checkpoint, registry
from earwise.models.families import audio_flamingo_next, gemma3n, gemma4, granite_speech, phi4_multimodal, voxtral
from earwise.models.families.transformers_audio import Architecture
from earwise.models.parts import lora
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.precision import lora_beside
from earwise.prompts import ChatTemplate, render
from earwise.training.trainable import set_trainable
from earwise.types import Audio, Text, Turn
from families import gemma3n as tiny_gemma3n
from families import granite_speech as tiny_granite
from families import phi4_multimodal as tiny_phi4
from families.forests import conversation, scores, turn
from families.tiny import Tiny
from families.transformers_audio import MELS, special_byte_tokenizer

CLASSES = {
    "voxtral": VoxtralForConditionalGeneration,
    "granite_speech": GraniteSpeechForConditionalGeneration,
    "phi4_multimodal": Phi4MultimodalForCausalLM,
    "gemma3n": Gemma3nForConditionalGeneration,
    "gemma4": Gemma4ForConditionalGeneration,
    "audio_flamingo_next": MusicFlamingoForConditionalGeneration,
}
DECODER_PREFIXES = ("model.language_model.layers.", "model.layers.")
CONVERSATION = (
    Turn("system", (Text("Be brief."),)),
    Turn("user", (Audio("0.wav"), Text("What is it?"))),
    Turn("assistant", (Text("A bell."),)),
    Turn("user", (Text("And"), Audio("1.wav"))),
)


def build(name: str) -> Tiny:
    return importlib.import_module(f"families.{name}").tiny()  # type: ignore[no-any-return]


def logits_divisor(name: str) -> float:
    """What the class's logits are divided by to give ours."""
    return tiny_granite.LOGITS_SCALING if name == "granite_speech" else 1.0


def text_path(ids: list[int]) -> TokenPath:
    """Text tokens as a path."""
    return TokenPath(tuple(ids), (False,) * len(ids), (-1,) * len(ids))


def rendered(template: ChatTemplate, turns: tuple[Turn, ...] = CONVERSATION) -> str:
    return "".join("@" if span.audio else span.text for span in render(turns, template, generate=True))


def test_chat_formats() -> None:
    assert rendered(voxtral.TEMPLATE) == (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST][BEGIN_AUDIO]@What is it?[/INST]A bell.</s>"
        "[INST]And[BEGIN_AUDIO]@[/INST]"
    )
    assert rendered(granite_speech.TEMPLATE) == (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>@What is it?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>A bell.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>And@<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
    )
    assert granite_speech.SYSTEM_MESSAGE in rendered(granite_speech.TEMPLATE, CONVERSATION[1:])
    assert rendered(phi4_multimodal.TEMPLATE) == (
        "<|system|>Be brief.<|end|><|user|>@What is it?<|end|><|assistant|>A bell.<|end|>"
        "<|user|>And@<|end|><|assistant|>"
    )
    assert rendered(gemma3n.TEMPLATE) == (
        "<bos><start_of_turn>user\nBe brief.\n\n\n\n<start_of_audio>@<end_of_audio>\n\nWhat is it?<end_of_turn>\n"
        "<start_of_turn>model\nA bell.<end_of_turn>\n"
        "<start_of_turn>user\nAnd\n\n<start_of_audio>@<end_of_audio>\n\n<end_of_turn>\n<start_of_turn>model\n"
    )
    assert rendered(gemma4.TEMPLATE) == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\n<|audio>@<audio|>What is it?<turn|>\n"
        "<|turn>model\nA bell.<turn|>\n<|turn>user\nAnd<|audio>@<audio|><turn|>\n<|turn>model\n"
    )
    assert rendered(gemma3n.TEMPLATE, CONVERSATION[1:2]).startswith("<bos><start_of_turn>user\n\n\n<start_of_audio>@")


def released_parts(architecture: Architecture) -> tuple[Any, Any]:
    """Config and feature extractor at released size."""
    if architecture is voxtral.ARCHITECTURE:
        return VoxtralConfig(audio_token_id=24), WhisperFeatureExtractor(feature_size=128)
    if architecture is granite_speech.ARCHITECTURE:
        return GraniteSpeechConfig(), granite_speech.LogMel()
    if architecture is gemma3n.ARCHITECTURE:
        return Gemma3nConfig(), Gemma3nAudioFeatureExtractor()
    if architecture is audio_flamingo_next.ARCHITECTURE:
        config = MusicFlamingoConfig(audio_config={"model_type": "audioflamingo3_encoder"})
        return config, WhisperFeatureExtractor(feature_size=128)
    if architecture is gemma4.ARCHITECTURE:
        return Gemma4Config(audio_config={}), Gemma4AudioFeatureExtractor()
    scaling = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = Phi4MultimodalConfig(
        num_attention_heads=24, rope_scaling=scaling, partial_rotary_factor=0.75, sliding_window=262144
    )
    return config, Phi4MultimodalFeatureExtractor()


@pytest.mark.parametrize(
    ("architecture", "tokens_per_s", "max_s", "tokens"),
    [
        # 30 s windows of 1500 states, four to a token
        (voxtral.ARCHITECTURE, 12.5, 2400.0, {1: 375, 480000: 375, 480001: 750}),
        # 20 ms frames, three tokens to fifteen of them: 16000 samples are 101 mel frames, 50 frames, 4 windows
        (granite_speech.ARCHITECTURE, 10.0, 204.8, {256: 0, 257: 3, 16000: 12, 480000: 300}),
        # 25 ms windows every 10 ms: 16000 samples are 98 frames, a token to eight; 4096 tokens hold 327.68 s
        (phi4_multimodal.ARCHITECTURE, 12.5, 327.68, {399: 0, 400: 1, 16000: 13, 480000: 375}),
        (gemma3n.ARCHITECTURE, 6.25, 30.0, {512: 0, 513: 188, 480000: 188}),
        # as Audio Flamingo 3, for three times as long
        (audio_flamingo_next.ARCHITECTURE, 25.0, 1800.0, {160: 0, 16000: 25, 480000: 750, 480640: 751}),
        # 20 ms windows every 10 ms, the first around the first sample: 16000 samples are 99 frames, a token to four
        (gemma4.ARCHITECTURE, 25.0, 30.0, {160: 0, 161: 1, 16000: 25, 480000: 750}),
    ],
)
def test_counts_at_released_size(
    architecture: Architecture, tokens_per_s: float, max_s: float, tokens: dict[int, int]
) -> None:
    config, extractor = released_parts(architecture)
    spec = architecture.audio_spec(config, extractor)
    assert (spec.sample_rate, spec.max_s, spec.tokens_per_s) == (16000, max_s, tokens_per_s)
    assert {samples: architecture.audio_tokens(config, extractor, samples) for samples in tokens} == tokens


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_two_clips_of_one_length_in_the_class_s_own_batch(name: str) -> None:
    """Nothing is padded then, so the class itself is the reference, unchanged."""
    family, waveforms = build(name), {0: tone(0.9), 1: tone(0.9, 700.0, 1)}
    path = conversation(family.model, [turn("user", "Which is louder?", 0, 1)], waveforms)
    expected = family.reference(path.ids, list(waveforms.values()))
    assert max_abs([scores(family.model, path, waveforms) - expected]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_reads_what_is_saved(name: str, tmp_path: Path) -> None:
    family = build(name)
    family.model.save(tmp_path)
    with tiny_gemma3n.without_image_tower():
        loaded = CLASSES[name].from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert loaded.config.architectures == [CLASSES[name].__name__]
    if names := registry.parameter_names(name):  # files have the names that other programs read
        first_words = {key.split(".")[0] for key in load_file(tmp_path / "model.safetensors")}
        assert first_words == {published.split(".")[0] for _, published in names}
    ids = family.model.tokenizer.encode("What is it?")
    ours = scores(family.model, text_path(ids), {})
    assert max_abs([loaded(input_ids=torch.tensor([ids])).logits[0] / logits_divisor(name) - ours]) < 1e-4


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_recomputed_layers(name: str) -> None:
    """Also where layers share keys and values through a dictionary that they fill as they run."""
    waveforms = {0: tone(0.6)}
    gradients: list[dict[str, torch.Tensor]] = []
    for recompute in (False, True):
        model = build(name).model
        if recompute:
            assert enable_gradient_checkpointing(model.module) >= 2
        model.module.train()
        trained = {key: value for key, value in model.module.named_parameters() if ".self_attn." in key}
        trained = {key: value.requires_grad_() for key, value in trained.items() if key.startswith(DECODER_PREFIXES)}
        path = conversation(model, [turn("user", "What is it?", 0)], waveforms)
        scores(model, path, waveforms).logsumexp(1).sum().backward()
        gradients.append({key: value.grad for key, value in trained.items() if value.grad is not None})
    stored, recomputed = gradients
    assert stored.keys() == recomputed.keys() and len(stored) >= 4
    assert max_abs([stored[key] - recomputed[key] for key in stored]) < 1e-4


# Adapters that checkpoints contain


def save_with_adapter(
    module: Any, folder: Path, adapter_folder: Path, target_modules: list[str] | str, tokenizer: Any, extractor: Any
) -> Any:
    """Write a checkpoint of the class with a random adapter, in the form of released ones; returns the class with the
    adapter on.

    PEFT writes the adapter, not transformers' own `add_adapter`, which may need a newer PEFT than is installed.
    """
    module.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    extractor.save_pretrained(folder)
    wrapped = get_peft_model(module, LoraConfig(r=3, lora_alpha=5, target_modules=target_modules))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(adapter_folder)
    return wrapped.eval()


def granite_with_adapter(folder: Path) -> Any:
    module = tiny_granite.reference_model()
    module.config.has_lora_adapter = True
    extractor = granite_speech.LogMel(n_mels=MELS)
    return save_with_adapter(module, folder, folder, ["q_proj", "v_proj"], tiny_granite.tokenizer(), extractor)


def phi4_with_adapter(folder: Path) -> Any:
    layers = r"model\.layers\.\d+\.(self_attn|mlp)\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
    tokenizer = special_byte_tokenizer(tiny_phi4.SPECIAL, {})
    extractor = Phi4MultimodalFeatureExtractor(feature_size=MELS)
    module = tiny_phi4.reference_model()
    return save_with_adapter(module, folder, folder / "speech-lora", layers, tokenizer, extractor)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "write"), [("granite_speech", granite_with_adapter), ("phi4_multimodal", phi4_with_adapter)]
)
def test_adapter_is_merged_and_saved_merged(name: str, write: Callable[[Path], Any], tmp_path: Path) -> None:
    module = write(tmp_path / "released")
    ids = build(name).model.tokenizer.encode("What is it?")
    expected = module(input_ids=torch.tensor([ids])).logits[0] / logits_divisor(name)
    model = base.load(str(tmp_path / "released"), device="cpu")
    path = text_path(ids)
    assert max_abs([scores(model, path, {}) - expected]) < 1e-4
    with module.disable_adapter():
        without = module(input_ids=torch.tensor([ids])).logits[0] / logits_divisor(name)
    assert max_abs([without - expected]) > 1e-2
    model.save(tmp_path / "saved")
    loaded = base.load(name, tmp_path / "saved", device="cpu")
    assert torch.equal(scores(loaded, path, {}), scores(model, path, {}))
    assert not list((tmp_path / "saved").rglob("adapter_*"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "write"), [("granite_speech", granite_with_adapter), ("phi4_multimodal", phi4_with_adapter)]
)
def test_adapter_beside_bfloat16_weights_is_not_rounded(
    name: str, write: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Base in bfloat16 and adapter in float32: as exact as both merged in float32, and full training starts there."""
    write(tmp_path)
    model = base.load(name, tmp_path, device="cpu", dtype="bfloat16")
    own = lora_beside.attached(model.module, own=True)
    assert own and not lora_beside.attached(model.module)
    assert lora.collect(model.module) == {}, "what is trained later does not contain it"
    float32 = base.load(name, tmp_path, device="cpu", dtype="bfloat16")
    float32.module.float()
    merged = base.load(name, tmp_path, device="cpu", dtype="bfloat16")
    merged.module.float()
    tensors = checkpoint.merged_state_dict(merged.module)
    lora_beside.detach(merged.module, own=True)
    merged.module.load_state_dict(tensors)
    path = text_path(model.tokenizer.encode("What is it?"))
    assert max_abs([scores(float32, path, {}).log_softmax(-1) - scores(merged, path, {}).log_softmax(-1)]) < 1e-4
    stem = next(key for key in own if key.endswith(".lora_B")).removesuffix(".lora_B")
    exact = set_trainable(model, TrainableConfig(decoder="full"))
    assert torch.equal(exact[f"{stem}.weight"], tensors[f"{stem}.weight"])
    assert not lora_beside.attached(model.module, own=True)


def test_adapters_are_read_without_the_loading_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers may need a newer PEFT than is installed (5.24: 0.22), so its own loading is never used."""

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("this PEFT is too old for transformers")

    granite_with_adapter(tmp_path / "granite")
    phi4_with_adapter(tmp_path / "phi4")
    for name in ("load_adapter", "add_adapter", "set_adapter"):
        monkeypatch.setattr(PeftAdapterMixin, name, refuse)
    for folder in ("granite", "phi4"):
        model = base.load(str(tmp_path / folder), device="cpu")
        model.save(tmp_path / "saved" / folder)


def test_adapter_under_the_names_of_transformers_4(tmp_path: Path) -> None:
    granite_with_adapter(tmp_path)
    expected = granite_speech.load(tmp_path).module.state_dict()
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {key.replace("model.language_model.", "language_model.model."): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    loaded = granite_speech.load(tmp_path).module.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


def edit_adapter_config(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rename_adapter_tensors(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {key: value for key, value in load_file(file).items() if new not in key}
    save_file({key.replace(old, new): value for key, value in tensors.items()}, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: not here"),
        (lambda folder: edit_adapter_config(folder, use_dora=True), "use_dora True is not plain LoRA"),
        (lambda folder: rename_adapter_tensors(folder, "q_proj", "query"), r"unexpected: .*self_attn\.query"),
        (lambda folder: rename_adapter_tensors(folder, "lora_A", "lora_B"), r"missing: .*self_attn\.q_proj"),
    ],
)
def test_adapters_that_cannot_be_merged(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    granite_with_adapter(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message) as error:
        granite_speech.load(tmp_path)
    assert "\n" not in str(error.value)


def test_phi4_without_its_speech_adapter(tmp_path: Path) -> None:
    phi4_with_adapter(tmp_path)
    for file in (tmp_path / "speech-lora").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=r"speech-lora.*: not here"):
        phi4_multimodal.load(tmp_path)
