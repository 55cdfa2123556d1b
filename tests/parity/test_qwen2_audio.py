"""Qwen2-Audio behind our contract against transformers' own class: trimmed clips, checkpoints, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration

from builders import (
    byte_tokenizer,
    feature_extractor,
    hf_copy,
    hf_logprobs,
    max_abs,
    tiny_hf_model,
    tiny_qwen2_audio,
    tone,
    user_question,
)
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import AudioError, ModelError
from earwise.forest import build_tree, pack
from earwise.models import base
from earwise.models.families import qwen2_audio
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import QWEN2_AUDIO, QWEN2_AUDIO_BASE, ChatTemplate
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable
from earwise.types import Waveform

CLIP_SAMPLES = (321, 480, 481, 7999, 8000, 8001, 12345, 20000, 31519, 31520, 31679, 31680, 31681, 31840, 31841, 32000)


def clips(*samples: int) -> list[Waveform]:
    return [tone(2.0, 300 + 97 * number, number)[:count] for number, count in enumerate(samples)]


@torch.no_grad()
@pytest.mark.parametrize(
    "batch",
    [
        CLIP_SAMPLES[:4],
        CLIP_SAMPLES[4:8],
        CLIP_SAMPLES[7:12],
        CLIP_SAMPLES[11:],
        CLIP_SAMPLES,
        *((samples,) for samples in CLIP_SAMPLES),
    ],
)
def test_trimmed_equals_padded_equals_the_class(batch: tuple[int, ...]) -> None:
    waveforms = clips(*batch)
    trimmed, padded = tiny_qwen2_audio(seed=3), tiny_qwen2_audio(seed=3, trim=False)
    module = hf_copy(trimmed)
    inputs = feature_extractor()(
        waveforms, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    states, tokens = module.model.audio_tower._get_feat_extract_output_lengths(inputs.attention_mask.sum(-1))
    mask = (torch.arange(100)[None] < states[:, None])[:, None, None].expand(-1, 1, 100, -1)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = module.model.audio_tower(inputs.input_features, attention_mask=bias).last_hidden_state
    short, full = trimmed.encode_audio(waveforms), padded.encode_audio(waveforms)
    for number, count in enumerate(tokens.tolist()):
        assert trimmed.audio_tokens(batch[number]) == count == len(short[number])
        differences = [clip[number] - expected[number, :count] for clip in (short, full)]
        assert max_abs(differences) < 1e-5


@torch.no_grad()
def test_trimming_needs_the_frames_that_convolutions_reach() -> None:
    """The padded frames after a clip's end change its last states: cutting at the last real frame gives others."""
    waveform = tone(0.5)
    trimmed, padded = tiny_qwen2_audio(), tiny_qwen2_audio(trim=False)
    mel = trimmed.features(waveform)
    assert mel.shape[1] == 51
    assert max_abs([mel - padded.features(waveform)[:, :51]]) < 1e-6
    cut = trimmed._encode_trimmed(mel[None, :, :50], 25, None)
    assert max_abs([cut[0] - padded.encode_audio([waveform])[0]]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_conversation_equals_the_class(implementation: str) -> None:
    """Two clips in one conversation, one of odd length, through the class's own forward pass with padded features."""
    for trim in (True, False):
        model = tiny_qwen2_audio(seed=5, trim=trim)
        waveforms = dict(enumerate(clips(9999, 24000)))
        prompt = conversation_path(model, user_question("Which is louder?", 2), [0, 1], [9999, 24000], generate=True)
        path = prompt + answer_path(model, "the second")
        forest = pack([build_tree([path])])
        ours = Policy(model)(forest, dict(enumerate(model.encode_audio(list(waveforms.values())))), {})[0]
        assert max_abs([ours - hf_logprobs(hf_copy(model, implementation), path, waveforms)]) < 1e-5


def test_clips_too_long_or_too_short() -> None:
    model = tiny_qwen2_audio()
    for call in (model.audio_tokens, lambda samples: model.encode_audio([tone(3.0)[:samples]])):
        with pytest.raises(AudioError, match=r"2\.00 s is longer than the 2 s .* truncate"):
            call(32001)
        for samples in (0, 1, 320):
            with pytest.raises(AudioError, match=f"clip of {samples} samples gives no audio token"):
                call(samples)
    assert model.audio_tokens(321) == 1
    assert model.spec.max_s == 2.0 and model.spec.sample_rate == 16000


def same_weights(first: Qwen2Audio, second: Qwen2Audio) -> bool:
    ours, others = first.module.state_dict(), second.module.state_dict()
    return ours.keys() == others.keys() and all(
        value.dtype == others[name].dtype and torch.equal(value, others[name]) for name, value in ours.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_bit_for_bit(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = tiny_qwen2_audio(seed=1, tied=tied)
    model.module.to(dtype)
    model.save(tmp_path / "first")
    loaded = base.load(str(tmp_path / "first"))
    assert isinstance(loaded, Qwen2Audio) and same_weights(model, loaded)
    table = loaded.module.model.language_model.embed_tokens.weight
    assert (loaded.module.lm_head.weight is table) == tied
    assert loaded.tokenizer.encode_template("<|im_start|>hé") == model.tokenizer.encode_template("<|im_start|>hé")
    loaded.save(tmp_path / "second")
    assert loaded.revision == base.load("qwen2_audio", tmp_path / "second").revision != "unsaved"
    # transformers' own class reads the folder too, the tied head included.
    module = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "first", dtype="auto")
    assert torch.equal(module.lm_head.weight, model.module.lm_head.weight)
    if dtype == torch.float32:
        waveform = tone(0.4)
        assert torch.equal(loaded.encode_audio([waveform])[0], model.encode_audio([waveform])[0])


def test_tied_head_left_out_of_the_file(tmp_path: Path) -> None:
    model = tiny_qwen2_audio(tied=True)
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (head,) = (name for name in tensors if name.endswith("lm_head.weight"))
    del tensors[head]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert same_weights(model, qwen2_audio.load(tmp_path))


@torch.no_grad()
def test_save_merges_lora(tmp_path: Path) -> None:
    model = tiny_qwen2_audio()
    plain_names = set(model.module.state_dict())
    lora = LoraConfig(r=3, lora_alpha=7.0, target_modules=("q_proj", "v_proj", "down_proj"))
    set_trainable(model, TrainableConfig(encoder="frozen", connector="full", decoder="lora", lora=lora))
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    waveforms = {0: tone(0.5)}
    prompt = conversation_path(model, user_question("What?"), [0], [len(waveforms[0])], generate=True)
    path = prompt + answer_path(model, "dog")
    before = Policy(model)(pack([build_tree([path])]), {}, waveforms)
    model.save(tmp_path)
    loaded = qwen2_audio.load(tmp_path)
    assert set(loaded.module.state_dict()) == plain_names
    after = Policy(loaded)(pack([build_tree([path])]), {}, waveforms)
    assert max_abs([after - before]) < 1e-5
    with_lora_off = hf_logprobs(hf_copy(tiny_qwen2_audio()), path, waveforms)
    assert max_abs([with_lora_off - before[0]]) > 1e-2
    assert torch.equal(before, Policy(model)(pack([build_tree([path])]), {}, waveforms)), "saving changed the model"


def test_published_key_names(tmp_path: Path) -> None:
    """Names of transformers 4 (as published) and of transformers 5 load to the same model."""
    model = tiny_qwen2_audio()
    model.save(tmp_path)
    published = {}
    for name, value in model.module.state_dict().items():
        old_name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        published["language_model.lm_head.weight" if name == "lm_head.weight" else old_name] = value.contiguous()
    for tensors in (published, {name: value.contiguous() for name, value in model.module.state_dict().items()}):
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        assert same_weights(model, qwen2_audio.load(tmp_path))


@pytest.mark.parametrize(
    ("end_ids", "template"),
    [(0, QWEN2_AUDIO_BASE), ([0], QWEN2_AUDIO_BASE), ([2, 0], QWEN2_AUDIO), (None, QWEN2_AUDIO)],
)
def test_base_or_instruct_by_the_tokens_that_end_an_answer(
    tmp_path: Path, end_ids: int | list[int] | None, template: ChatTemplate
) -> None:
    """Ids 0 and 2 are `<|endoftext|>` and `<|im_end|>`; what `save` wrote comes first."""
    tiny_qwen2_audio().save(tmp_path)
    (tmp_path / "earwise.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end_ids}))
    loaded = qwen2_audio.load(tmp_path)
    assert loaded.template == template
    assert loaded.eos_ids == ((0,) if template is QWEN2_AUDIO_BASE else (2, 0))
    loaded.save(tmp_path / "again")
    (tmp_path / "again" / "generation_config.json").unlink()
    again = base.load(str(tmp_path / "again"))
    assert (again.template, again.eos_ids) == (loaded.template, loaded.eos_ids)
    path = conversation_path(again, user_question("Sing:"), [0], [5000], generate=True)
    is_chat = again.tokenizer.encode_template("<|im_start|>")[0] in path.ids
    assert is_chat == (template is QWEN2_AUDIO)
    assert answer_path(again, "la").ids[-1] == again.eos_ids[0]


def test_checkpoints_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        qwen2_audio.load(tmp_path)
    model = tiny_qwen2_audio()
    model.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)

    def refused(match: str, changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, weights, {"format": "pt"})
        with pytest.raises(ModelError, match=match) as error:
            qwen2_audio.load(tmp_path)
        assert "\n" not in str(error.value)

    bias = next(name for name in tensors if name.endswith("linear.bias"))
    refused(
        r"tensors missing: model\.multi_modal_projector\.linear\.bias; give",
        {name: value for name, value in tensors.items() if name != bias},
    )
    refused("tensors unexpected: surplus", tensors | {"surplus.weight": torch.zeros(2)})
    refused(r"wrong shape: .*linear\.bias \(3,\) for \(32,\)", tensors | {bias: torch.zeros(3)})
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a Qwen2-Audio checkpoint"):
        qwen2_audio.load(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        qwen2_audio.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights can run code"):
        qwen2_audio.load(tmp_path)
    save_file(tensors, weights, {"format": "pt"})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        qwen2_audio.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer that knows"):
        qwen2_audio.load(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE forbids fetching it; give the folder"):
        qwen2_audio.load()


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="the id 290, the config 3"):
        qwen2_audio.from_parts(tiny_hf_model(), byte_tokenizer(290), feature_extractor())
    with pytest.raises(ModelError, match=r"features are \(80, 16000, 160\)"):
        qwen2_audio.from_parts(tiny_hf_model(), byte_tokenizer(), feature_extractor(mels=80))


def test_config_of_a_saved_model_does_not_name_our_attention(tmp_path: Path) -> None:
    tiny_qwen2_audio().save(tmp_path)
    assert "earwise" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
