"""Qwen2.5-Omni's thinker against transformers' own class: blocks, positions, checkpoints, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
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
from earwise.models import base, lora_checkpoint, registry
from earwise.models.families.qwen25_omni import ARCHITECTURE, load
from earwise.models.families.transformers_audio import TransformersAudioLM, from_parts
from earwise.models.parts import mel
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import render
from earwise.training.trainable import set_trainable
from earwise.types import Waveform
from families.qwen25_omni import our_model, reference_model
from families.transformers_audio import FULL_WINDOW

# Blocks have 30 frames: shorter clips, whole blocks, one frame more, odd and even remainders, several blocks.
CLIP_SAMPLES = (321, 480, 4641, 4800, 4801, 4960, 4961, 5280, 7999, 9599, 9600, 9601, 14401, 20000, 31840, 31841, 32000)


def clips(*samples: int) -> list[Waveform]:
    return [tone(2.0, 300 + 97 * number, number)[:count] for number, count in enumerate(samples)]


@torch.no_grad()
@pytest.mark.parametrize("batch", [CLIP_SAMPLES, CLIP_SAMPLES[::5], *((samples,) for samples in CLIP_SAMPLES)])
def test_embeddings_equal_those_of_the_class(batch: tuple[int, ...]) -> None:
    """Real frames in one batch of blocks equal the class on features padded to its window, clip by clip."""
    waveforms, module = clips(*batch), reference_model(3)
    model = our_model(module)
    features = feature_extractor()(waveforms, **FULL_WINDOW)
    _, counts = module.model.audio_tower._get_feat_extract_output_lengths(features.attention_mask.sum(-1))
    states = module.get_audio_features(features.input_features, features.attention_mask).last_hidden_state
    expected = states.split(counts.tolist())
    ours = model.project_audio(model.encode_audio(waveforms))
    assert [model.audio_tokens(samples) for samples in batch] == counts.tolist() == [len(clip) for clip in ours]
    assert max_abs([clip - expected_value for clip, expected_value in zip(ours, expected, strict=True)]) < 1e-5


@torch.no_grad()
def test_blocks_do_not_attend_to_each_other() -> None:
    """A change after a block of 300 ms changes nothing in it; a change within it does."""
    model, waveform = our_model(reference_model()), tone(1.0)
    changed = waveform.copy()
    changed[9600 + 400 :] *= -0.5  # the features' windows reach 200 samples back
    before, after = model.encode_audio([waveform, changed])
    assert max_abs([before[:15] - after[:15]]) < 1e-5 < 1e-2 < max_abs([before[15:16] - after[15:16]])


def test_features_of_real_frames_are_those_of_the_padded_window() -> None:
    """Padding to the five minutes of the released extractor changes no real frame, so it is never computed."""
    released = WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    for samples in (321, 16000, 30001):
        waveform = tone(2.0)[:samples]
        padded = released(waveform, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
        frames = int(padded.attention_mask.sum())
        ours = mel.unpadded_log_mel(waveform, released)
        assert padded.input_features.shape[2] == 30000 and ours.shape == (128, frames)
        assert max_abs([ours - padded.input_features[0, :, :frames]]) < 1e-5
    for waveform in (tone(2.0), tone(2.0)[:31999]):  # if a clip fills the window, its reflected end is in both
        expected = feature_extractor()(waveform, sampling_rate=16000, return_tensors="pt").input_features[0]
        assert max_abs([mel.unpadded_log_mel(waveform, feature_extractor()) - expected]) < 1e-5


@torch.no_grad()
def test_positions_are_the_depths_on_all_three_axes() -> None:
    """The class counts audio and text alike; the forest's depths are those positions, in every branch."""
    module = reference_model()
    model = our_model(module)
    samples = [9999, 24000]
    trunk = conversation_path(model, user_question("Which is louder?", 2), [0, 1], samples, generate=True)
    paths = [trunk + answer_path(model, text) for text in ("the second", "the first", "neither of them")]
    forest = pack([build_tree(paths)])
    frames = torch.tensor([mel.frame_count(count) for count in samples])
    for path, branch in zip(paths, build_tree(paths).branches, strict=True):
        ids = torch.tensor([path.ids])
        # An empty list of images selects the class's multimodal branch, which audio alone does not.
        no_images = torch.zeros(0, 3, dtype=torch.long)
        expected, _ = module.get_rope_index(ids, no_images, None, torch.ones_like(ids), audio_seqlens=frames)
        assert torch.equal(expected, torch.arange(len(path.ids)).expand(3, 1, -1))
        assert forest.positions[list(branch)].tolist() == expected[0, 0, -len(branch) :].tolist()


@torch.no_grad()
def test_three_axes_matter() -> None:
    """Other positions on one axis give other states: all three rows are used."""
    model = our_model(reference_model())
    prompt = conversation_path(model, user_question("No sound: what is two plus two?", 0), [], [], generate=True)
    forest = pack([build_tree([prompt])])
    text = model.module.model.language_model
    embedded = model.embed(forest.ids)
    unchanged = model.decode(embedded, forest.positions, TreeAttention(forest))
    positions = forest.positions.expand(3, 1, -1)
    for axis in range(3):
        changed = positions.clone()
        changed[axis] *= 2
        attend = TreeAttention(forest)
        out = text(inputs_embeds=embedded[None], position_ids=changed, use_cache=False, attend_with=attend)
        assert max_abs([out.last_hidden_state[0] - unchanged]) > 1e-3


def test_template_is_the_released_one() -> None:
    spans = render(user_question("What is it?", 2), ARCHITECTURE.template, generate=True)
    text = "".join("<|AUDIO|>" if span.audio else span.text for span in spans)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|audio_bos|><|AUDIO|><|audio_eos|><|audio_bos|><|AUDIO|><|audio_eos|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def published_tensors(module: Qwen2_5OmniThinkerForConditionalGeneration) -> dict[str, Tensor]:
    """The state dict under the names of the released checkpoints."""
    return {
        "thinker." + re.sub(r"^model\.", "", name).replace("language_model.", "model."): value.clone()
        for name, value in module.state_dict().items()
    }


def full_checkpoint(folder: Path, module: Qwen2_5OmniThinkerForConditionalGeneration) -> Path:
    """A small released checkpoint: the thinker in two files, talker and vocoder in a third that cannot be read."""
    folder.mkdir()
    tensors = published_tensors(module)
    names = sorted(tensors)
    files = {"model-00001-of-00003.safetensors": names[::2], "model-00002-of-00003.safetensors": names[1::2]}
    for file, file_names in files.items():
        save_file({name: tensors[name] for name in file_names}, folder / file, {"format": "pt"})
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"not to be opened")
    weight_map = {name: file for file, file_names in files.items() for name in file_names}
    weight_map |= {
        name: "model-00003-of-00003.safetensors" for name in ("talker.codec_head.weight", "token2wav.code2wav.weight")
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "model_type": "qwen2_5_omni",
        "thinker_config": module.config.to_dict(),
        "talker_config": {"vocab_size": 9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    feature_extractor().save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def same_weights(first: TransformersAudioLM, second: TransformersAudioLM) -> bool:
    ours, others = first.module.state_dict(), second.module.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in ours.items())


def test_the_thinker_is_read_from_a_full_checkpoint(tmp_path: Path) -> None:
    module = reference_model(2)
    folder = full_checkpoint(tmp_path / "full", module)
    model = load(folder)
    assert same_weights(model, our_model(module))
    assert not any("visual" in name or "bos_eos" in name for name, _ in model.module.named_parameters())
    (folder / "model-00003-of-00003.safetensors").unlink()
    assert load(folder).revision == model.revision, "files of other parts are not needed"
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors, .* is not here; download it"):
        load(folder)


def test_what_is_saved_is_a_whole_thinker(tmp_path: Path) -> None:
    """Under the released names, visual tower included: transformers' own class finds every tensor."""
    module = reference_model(2)
    base.load("qwen25_omni", full_checkpoint(tmp_path / "full", module), device="cpu").save(tmp_path / "saved")
    our_model(module).save(tmp_path / "never loaded")
    for folder in (tmp_path / "saved", tmp_path / "never loaded"):
        assert "earwise" not in (folder / "config.json").read_text()
        assert load_file(folder / "model.safetensors").keys() == published_tensors(module).keys()
        loaded, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
    again = base.load(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again, TransformersAudioLM) and same_weights(again, our_model(module))
    half = base.load(str(tmp_path / "saved"), device="cpu", dtype="bfloat16")
    assert {value.dtype for value in half.module.parameters()} == {torch.bfloat16}
    embeddings = half.project_audio(half.encode_audio([tone(0.5)]))[0]
    assert embeddings.dtype == torch.bfloat16 and bool(embeddings.isfinite().all())


def test_a_thinker_without_visual_tower(tmp_path: Path) -> None:
    """The visual tower may be missing, since it is never used. Then it is missing from what is saved, too."""
    model = our_model(reference_model())
    model.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if "visual" not in name}
    save_file(tensors, file, {"format": "pt"})
    loaded = load(tmp_path)
    assert same_weights(loaded, model)
    assert list(loaded.unused_tensors) == ["model.audio_tower.audio_bos_eos_token.weight"]
    loaded.save(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    our_model(reference_model()).save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, text = load_file(weights), config.read_text()

    def refused(match: str, changed: dict[str, Tensor]) -> None:
        save_file(changed, weights, {"format": "pt"})
        with pytest.raises(ModelError, match=match) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)

    bias = "thinker.audio_tower.proj.bias"
    refused(r"tensors missing: model\.audio_tower\.proj\.bias; give", {k: v for k, v in tensors.items() if k != bias})
    for surplus in ("surplus.weight", "thinker.surplus.weight"):
        refused("tensors unexpected: surplus", tensors | {surplus: torch.zeros(2)})
    refused(r"wrong shape: .*proj\.bias \(3,\) for \(32,\)", tensors | {bias: torch.zeros(3)})
    refused(r"no tensors .* start with 'thinker\.'", {k.removeprefix("thinker."): v for k, v in tensors.items()})
    config.write_text(json.dumps({"model_type": "qwen2_5_omni"}))
    refused(r"config\.json: not the config of a Qwen2\.5-Omni model", tensors)
    config.write_text(json.dumps({"model_type": "qwen2"}))
    refused("model_type is 'qwen2'", tensors)
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights can run code"):
        load(tmp_path)


def test_a_folder_with_only_the_thinker(tmp_path: Path) -> None:
    """As transformers' thinker class saves it, under the names of version 4 or 5."""
    module = reference_model(3)
    for number, original in enumerate((True, False)):
        folder = tmp_path / str(number)
        module.save_pretrained(folder, save_original_format=original)
        assert ("model.layers.0.mlp.up_proj.weight" in load_file(folder / "model.safetensors")) == original
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        feature_extractor().save_pretrained(folder)
        assert same_weights(base.load(str(folder), device="cpu"), our_model(module))


@torch.no_grad()
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter"])
def test_lora_on_encoder_and_decoder(tmp_path: Path, merged: bool) -> None:
    """LoRA is loaded again merged into the saved weights, and as an adapter under every name that programs give the
    thinker's parameters."""
    model, waveform = our_model(reference_model(4)), tone(0.7)
    lora = LoraConfig(r=2, lora_alpha=6.0, target_modules=("q_proj", "fc1", "up_proj"))
    set_trainable(model, TrainableConfig(encoder="lora", connector="frozen", decoder="lora", lora=lora))
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.arange(6, 30)
    forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * len(ids), (-1,) * len(ids))])])

    def outputs(lm: TransformersAudioLM) -> tuple[Tensor, Tensor]:
        logits = lm.logits(lm.decode(lm.embed(ids), forest.positions, TreeAttention(forest)))
        return lm.project_audio(lm.encode_audio([waveform]))[0], logits

    changed, start = outputs(model), outputs(our_model(reference_model(4)))
    assert all(max_abs([after - before]) > 1e-2 for after, before in zip(changed, start, strict=True))
    if merged:
        model.save(tmp_path / "merged")
        folders = [tmp_path / "merged"]
    else:
        our_model(reference_model(4)).save(tmp_path / "base")
        adapter = lora_checkpoint.from_module(model.module, str(tmp_path / "base"))
        names = registry.parameter_names("qwen25_omni")
        layouts = {"published": names, "thinker of 4": names[3:], "full of 5": names[5:], "ours": ()}
        folders = [tmp_path / name for name in layouts]
        for folder, pairs in zip(folders, layouts.values(), strict=True):
            lora_checkpoint.write(folder, lora_checkpoint.rename_parameters(adapter, pairs))
        (decoder_stem,) = {name.split(".layers")[0] for name in load_file(folders[0] / "adapter_model.safetensors")} - {
            "base_model.model.thinker.audio_tower"
        }
        assert decoder_stem == "base_model.model.thinker.model"
    for folder in folders:
        loaded = base.load("qwen25_omni", folder, device="cpu")
        assert isinstance(loaded, TransformersAudioLM)
        differences = [ours - expected_value for ours, expected_value in zip(outputs(loaded), changed, strict=True)]
        assert max_abs(differences) < 1e-4, folder


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="the id 290, the config 3"):
        from_parts(ARCHITECTURE, reference_model(), byte_tokenizer(290), feature_extractor())
    with pytest.raises(ModelError, match=r"features are \(80, 16000, 160\)"):
        from_parts(ARCHITECTURE, reference_model(), byte_tokenizer(), feature_extractor(mels=80))
    small = reference_model(vocab_size=200, pad_token_id=None)
    with pytest.raises(ModelError, match="token id 261 but 200 embeddings"):
        from_parts(ARCHITECTURE, small, byte_tokenizer(), feature_extractor())


@torch.no_grad()
def test_a_sliding_window_is_that_of_the_class() -> None:
    """Windows of a config are part of the forest's attention, layer by layer."""
    module = reference_model(use_sliding_window=True, sliding_window=40, max_window_layers=1)
    model = our_model(module)

    def our_logits(ids: Tensor) -> Tensor:
        length = len(ids)
        forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * length, (-1,) * length)])])
        return model.logits(model.decode(model.embed(ids), forest.positions, TreeAttention(forest)))

    ids = torch.arange(6, 146)
    expected = module(input_ids=ids[None], attention_mask=torch.ones(1, len(ids))).logits[0]
    module.config.text_config.sliding_window = None
    assert max_abs([our_logits(ids) - expected]) < 1e-4
    without_window = reference_model()
    assert max_abs([without_window(input_ids=ids[None]).logits[0][41:] - expected[41:]]) > 1e-2
