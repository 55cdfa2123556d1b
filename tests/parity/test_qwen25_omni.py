"""Qwen2.5-Omni's thinker against the class of transformers: blocks, positions, checkpoints, refusals."""

import json
import re
from pathlib import Path

import pytest
import torch
from earwise.models.families.native import Native
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from builders import byte_tokenizer, feature_extractor, max_abs, tone, user_question
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models import base, lora_checkpoint
from earwise.models.families import native
from earwise.models.families.qwen25_omni import ROW, load
from earwise.models.parts import mel
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import render
from earwise.train.trainable import set_trainable
from families.qwen25_omni import plain, thinker

# Blocks are of 30 frames: shorter, whole, a frame more, odd and even tails, several blocks.
LENGTHS = (321, 480, 4641, 4800, 4801, 4960, 4961, 5280, 7999, 9599, 9600, 9601, 14401, 20000, 31840, 31841, 32000)


def clips(*samples: int) -> list:
    return [tone(2.0, 300 + 97 * number, number)[:count] for number, count in enumerate(samples)]


@torch.no_grad()
@pytest.mark.parametrize("batch", [LENGTHS, LENGTHS[::5], *((samples,) for samples in LENGTHS)])
def test_hears_what_the_class_hears(batch: tuple[int, ...]) -> None:
    """Real frames in one batch of blocks equal the class on features padded to its window, clip by clip."""
    waveforms, module = clips(*batch), plain(3)
    model = thinker(module)
    heard = feature_extractor()(
        waveforms, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    _, counts = module.model.audio_tower._get_feat_extract_output_lengths(heard.attention_mask.sum(-1))
    own = module.get_audio_features(heard.input_features, heard.attention_mask).last_hidden_state.split(counts.tolist())
    ours = model.project_audio(model.encode_audio(waveforms))
    assert [model.audio_tokens(samples) for samples in batch] == counts.tolist() == [len(clip) for clip in ours]
    assert max_abs([one - other for one, other in zip(ours, own, strict=True)]) < 1e-5


@torch.no_grad()
def test_blocks_do_not_see_each_other() -> None:
    """What follows a block of 300 ms changes nothing in it; what lies within does."""
    model, wave = thinker(plain()), tone(1.0)
    changed = wave.copy()
    changed[9600 + 400 :] *= -0.5  # the features' windows reach 200 samples back
    before, after = model.encode_audio([wave, changed])
    assert max_abs([before[:15] - after[:15]]) < 1e-5 < 1e-2 < max_abs([before[15:16] - after[15:16]])


def test_features_of_real_frames_are_those_of_the_padded_window() -> None:
    """Padding to the five minutes of the released extractor changes no real frame, so it is never computed."""
    released = WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    for samples in (321, 16000, 30001):
        wave = tone(2.0)[:samples]
        padded = released(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
        frames = int(padded.attention_mask.sum())
        ours = mel.unpadded_log_mel(wave, released)
        assert padded.input_features.shape[2] == 30000 and ours.shape == (128, frames)
        assert max_abs([ours - padded.input_features[0, :, :frames]]) < 1e-5
    for short in (tone(2.0), tone(2.0)[:31999]):  # a clip that fills the window sees its reflected end in both
        whole = feature_extractor()(short, sampling_rate=16000, return_tensors="pt").input_features[0]
        assert max_abs([mel.unpadded_log_mel(short, feature_extractor()) - whole]) < 1e-5


@torch.no_grad()
def test_positions_are_the_depths_on_all_three_axes() -> None:
    """The class counts audio and text alike; the forest's depths are those positions, in every branch."""
    module = plain()
    model = thinker(module)
    samples = [9999, 24000]
    trunk = conversation_path(model, user_question("Which is louder?", 2), [0, 1], samples, generate=True)
    paths = [trunk + answer_path(model, text) for text in ("the second", "the first", "neither of them")]
    forest = pack([build_tree(paths)])
    frames = torch.tensor([mel.frame_count(count) for count in samples])
    for path, branch in zip(paths, build_tree(paths).branches, strict=True):
        ids = torch.tensor([path.ids])
        # An empty list of images takes the class through its multimodal branch, which sound alone does not.
        nothing = torch.zeros(0, 3, dtype=torch.long)
        theirs, _ = module.get_rope_index(ids, nothing, None, torch.ones_like(ids), audio_seqlens=frames)
        assert torch.equal(theirs, torch.arange(len(path.ids)).expand(3, 1, -1))
        assert forest.positions[list(branch)].tolist() == theirs[0, 0, -len(branch) :].tolist()


@torch.no_grad()
def test_three_axes_matter() -> None:
    """Other positions on one axis give other states: the rows are really read."""
    model = thinker(plain())
    spoken = conversation_path(model, user_question("No sound: what is two plus two?", 0), [], [], generate=True)
    forest = pack([build_tree([spoken])])
    text = model.module.model.language_model
    embedded = model.embed(forest.ids)
    same = model.decode(embedded, forest.positions, TreeAttention(forest))
    rows = forest.positions.expand(3, 1, -1).clone()
    for axis in range(3):
        moved = rows.clone()
        moved[axis] *= 2
        out = text(inputs_embeds=embedded[None], position_ids=moved, use_cache=False, attend_with=TreeAttention(forest))
        assert max_abs([out.last_hidden_state[0] - same]) > 1e-3


def test_template_is_the_released_one() -> None:
    spans = render(user_question("What is it?", 2), ROW.template, generate=True)
    text = "".join("<|AUDIO|>" if span.audio else span.text for span in spans)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|audio_bos|><|AUDIO|><|audio_eos|><|audio_bos|><|AUDIO|><|audio_eos|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def published(module: Qwen2_5OmniThinkerForConditionalGeneration) -> dict[str, Tensor]:
    """The state dict under the names of the released checkpoints."""
    return {
        "thinker." + re.sub(r"^model\.", "", name).replace("language_model.", "model."): value.clone()
        for name, value in module.state_dict().items()
    }


def full_checkpoint(folder: Path, module: Qwen2_5OmniThinkerForConditionalGeneration) -> Path:
    """A released checkpoint in small: the thinker in two files, talker and vocoder in a third that nobody can read."""
    folder.mkdir()
    state = published(module)
    names = sorted(state)
    files = {"model-00001-of-00003.safetensors": names[::2], "model-00002-of-00003.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file, {"format": "pt"})
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"not to be opened")
    places = {name: file for file, held in files.items() for name in held}
    places |= {
        name: "model-00003-of-00003.safetensors" for name in ("talker.codec_head.weight", "token2wav.code2wav.weight")
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "model_type": "qwen2_5_omni",
        "thinker_config": module.config.to_dict(),
        "talker_config": {"vocab_size": 9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    feature_extractor().save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def same_state(one: Native, other: Native) -> bool:
    ours, theirs = one.module.state_dict(), other.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_thinker_out_of_a_full_checkpoint(tmp_path: Path) -> None:
    module = plain(2)
    folder = full_checkpoint(tmp_path / "full", module)
    model = load(folder)
    assert same_state(model, thinker(module))
    assert not any("visual" in name or "bos_eos" in name for name, _ in model.module.named_parameters())
    (folder / "model-00003-of-00003.safetensors").unlink()
    assert load(folder).revision == model.revision  # nor is it needed
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors, .* is not here; download it"):
        load(folder)


def test_what_is_saved_is_a_whole_thinker(tmp_path: Path) -> None:
    """Under the released names, visual tower included: transformers' own class misses nothing."""
    module = plain(2)
    base.load("qwen25_omni", full_checkpoint(tmp_path / "full", module), device="cpu").save(tmp_path / "saved")
    thinker(module).save(tmp_path / "never loaded")
    for folder in (tmp_path / "saved", tmp_path / "never loaded"):
        assert "earwise" not in (folder / "config.json").read_text()
        assert load_file(folder / "model.safetensors").keys() == published(module).keys()
        theirs, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in module.state_dict().items())
    again = base.load(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again, Native) and same_state(again, thinker(module))
    half = base.load(str(tmp_path / "saved"), device="cpu", dtype="bfloat16")
    assert {value.dtype for value in half.module.parameters()} == {torch.bfloat16}
    heard = half.project_audio(half.encode_audio([tone(0.5)]))[0]
    assert heard.dtype == torch.bfloat16 and bool(heard.isfinite().all())


def test_a_thinker_without_eyes(tmp_path: Path) -> None:
    """The visual tower may be missing: it is never used. Then it is missing from what is saved, too."""
    model = thinker(plain())
    model.save(tmp_path)
    state = {name: value for name, value in load_file(tmp_path / "model.safetensors").items() if "visual" not in name}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    blind = load(tmp_path)
    assert same_state(blind, model)
    assert list(blind.carried) == ["model.audio_tower.audio_bos_eos_token.weight"]
    blind.save(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == state.keys()


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    thinker(plain()).save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, text = load_file(weights), config.read_text()

    def refused(match: str, changed: dict[str, Tensor]) -> None:
        save_file(changed, weights, {"format": "pt"})
        with pytest.raises(ModelError, match=match) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)

    bias = "thinker.audio_tower.proj.bias"
    refused(r"tensors missing: model\.audio_tower\.proj\.bias; give", {k: v for k, v in state.items() if k != bias})
    for surplus in ("surplus.weight", "thinker.surplus.weight"):
        refused("tensors unexpected: surplus", state | {surplus: torch.zeros(2)})
    refused(r"wrong shape: .*proj\.bias \(3,\) for \(32,\)", state | {bias: torch.zeros(3)})
    refused(r"no tensors .* start with 'thinker\.'", {k.removeprefix("thinker."): v for k, v in state.items()})
    config.write_text(json.dumps({"model_type": "qwen2_5_omni"}))
    refused(r"config\.json: not the config of a Qwen2\.5-Omni model", state)
    config.write_text(json.dumps({"model_type": "qwen2"}))
    refused("model_type is 'qwen2'", state)
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights can run code"):
        load(tmp_path)


def test_a_folder_with_the_thinker_alone(tmp_path: Path) -> None:
    """As transformers' thinker class saves it, under the names of version 4 or 5."""
    module = plain(3)
    for number, original in enumerate((True, False)):
        folder = tmp_path / str(number)
        module.save_pretrained(folder, save_original_format=original)
        assert ("model.layers.0.mlp.up_proj.weight" in load_file(folder / "model.safetensors")) == original
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        feature_extractor().save_pretrained(folder)
        assert same_state(base.load(str(folder), device="cpu"), thinker(module))


@torch.no_grad()
@pytest.mark.parametrize("ours", [True, False], ids=["merged", "adapter"])
def test_lora_on_encoder_and_decoder(tmp_path: Path, ours: bool) -> None:
    """It comes back merged in what is saved, and as an adapter under every name that programs give the thinker."""
    model, wave = thinker(plain(4)), tone(0.7)
    wanted = LoraConfig(r=2, lora_alpha=6.0, target_modules=("q_proj", "fc1", "up_proj"))
    set_trainable(model, TrainableConfig(encoder="lora", connector="frozen", decoder="lora", lora=wanted))
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.arange(6, 30)
    forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * len(ids), (-1,) * len(ids))])])

    def outcome(one: Native) -> tuple[Tensor, Tensor]:
        said = one.logits(one.decode(one.embed(ids), forest.positions, TreeAttention(forest)))
        return one.project_audio(one.encode_audio([wave]))[0], said

    changed, start = outcome(model), outcome(thinker(plain(4)))
    assert all(max_abs([one - other]) > 1e-2 for one, other in zip(changed, start, strict=True))
    if ours:
        model.save(tmp_path / "merged")
        folders = [tmp_path / "merged"]
    else:
        thinker(plain(4)).save(tmp_path / "base")
        kept = lora_checkpoint.trained(model.module, str(tmp_path / "base"))
        names = lora_checkpoint.PUBLISHED["qwen25_omni"]
        spoken = {"published": names, "thinker of 4": names[3:], "full of 5": names[5:], "ours": ()}
        folders = [tmp_path / name for name in spoken]
        for folder, pairs in zip(folders, spoken.values(), strict=True):
            lora_checkpoint.write(folder, lora_checkpoint.renamed(kept, pairs))
        (stored,) = {name.split(".layers")[0] for name in load_file(folders[0] / "adapter_model.safetensors")} - {
            "base_model.model.thinker.audio_tower"
        }
        assert stored == "base_model.model.thinker.model"
    for folder in folders:
        loaded = base.load("qwen25_omni", folder, device="cpu")
        assert isinstance(loaded, Native)
        assert all(max_abs([one - other]) < 1e-4 for one, other in zip(outcome(loaded), changed, strict=True)), folder


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="the id 290, the config 3"):
        native.from_parts(ROW, plain(), byte_tokenizer(290), feature_extractor())
    with pytest.raises(ModelError, match=r"features are \(80, 16000, 160\)"):
        native.from_parts(ROW, plain(), byte_tokenizer(), feature_extractor(mels=80))
    small = plain(vocab_size=200, pad_token_id=None)
    with pytest.raises(ModelError, match="token id 261 but 200 embeddings"):
        native.from_parts(ROW, small, byte_tokenizer(), feature_extractor())


@torch.no_grad()
def test_a_sliding_window_is_honoured_or_refused() -> None:
    """Within the window full attention is the same; a longer sequence is refused before anything wrong is computed."""
    module = plain(use_sliding_window=True, sliding_window=40, max_window_layers=1)
    model = thinker(module)

    def ours(ids: Tensor) -> Tensor:
        length = len(ids)
        forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * length, (-1,) * length)])])
        return model.logits(model.decode(model.embed(ids), forest.positions, TreeAttention(forest)))

    fits, too_long = torch.arange(6, 46), torch.arange(6, 47)
    theirs = module(input_ids=fits[None], attention_mask=torch.ones(1, 40)).logits[0]
    assert max_abs([ours(fits) - theirs]) < 1e-4
    with pytest.raises(ModelError, match="sequence of 41 tokens is longer than the 40 that tiny decodes"):
        ours(too_long)
