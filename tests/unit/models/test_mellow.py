"""Mellow's converter in both directions, its two templates and what they refuse, and what training must not change."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from builders import byte_tokenizer
from e2e.shell import in_process
from earwise.errors import AudioError, DataError, ModelError
from earwise.models import base, checkpoint
from earwise.models.convert.mellow import (
    EMBEDDING,
    HEAD,
    convert,
    official_shapes,
    official_state_dict,
    released_config,
)
from earwise.models.families.mellow import RELEASED, load
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.types import Audio, Text, Turn, Waveform
from families.mellow import CONFIG, tiny_mellow

RATE = 32000
SCORES = "audio_encoder.base.htsat.tscam_conv.weight"


def tone(seconds: float) -> Waveform:
    time = np.arange(round(seconds * RATE)) / RATE
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * 440 * time) + noise).astype(np.float32)


def question(text: str, clips: int = 1) -> tuple[Turn, ...]:
    return (Turn("user", (*(Audio(f"{number}") for number in range(clips)), Text(text))),)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "smollm2"
    folder.mkdir()
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def pickled(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_conversion_in_both_directions(tmp_path: Path, tokenizer: Path) -> None:
    model = tiny_mellow(3)
    official = official_state_dict(model)
    assert {name: tuple(value.shape) for name, value in official.items()} == official_shapes(model.module)
    for prefix in ("", "module."):
        source = pickled(tmp_path / "v0.ckpt", {prefix + name: value for name, value in official.items()})
        out = tmp_path / f"out{prefix}"
        convert(source, tokenizer, out, template="compat", config=CONFIG)
        loaded = base.load(str(out), device="cpu")
        assert loaded.template.name == "mellow-compat"
        assert loaded.revision == checkpoint.weights_digest([out / "model.safetensors"])
        ours = model.module.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in loaded.module.state_dict().items())
        again = official_state_dict(load(out))
        assert again.keys() == official.keys()
        assert all(torch.equal(value, official[name]) for name, value in again.items())
        assert not list(tmp_path.glob(".*.part"))


def spoiled(official: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    cosines = "audio_encoder.base.htsat.spectrogram_extractor.stft.conv_real.weight"
    changes: dict[str, dict[str, Tensor]] = {
        "missing": {},
        "unexpected": {"caption_decoder.gpt.wte": torch.zeros(1)},
        "shape": {SCORES: official[SCORES][:-1]},
        "front end": {cosines: official[cosines] * 1.01},
        "head": {HEAD: official[EMBEDDING] + 1},
    }
    return {name: value for name, value in official.items() if fault != "missing" or name != SCORES} | changes[fault]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", rf"missing: {SCORES}"),
        ("unexpected", r"unexpected: caption_decoder\.gpt\.wte"),
        ("shape", rf"wrong shape: {SCORES} \(11, 16, 2, 3\) for \(12, 16, 2, 3\)"),
        ("front end", r"conv_real\.weight is off by 0\.01"),
        ("head", "not the embedding table"),
    ],
)
def test_converter_refuses_other_checkpoints(tmp_path: Path, tokenizer: Path, fault: str, message: str) -> None:
    source = pickled(tmp_path / "v0.ckpt", spoiled(official_state_dict(tiny_mellow()), fault))
    with pytest.raises(ModelError, match=message) as error:
        convert(source, tokenizer, tmp_path / "out", config=CONFIG)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_converter_runs_no_code_and_reads_no_garbage(tmp_path: Path, tokenizer: Path) -> None:
    written = tmp_path / "ran"
    with pytest.raises(ModelError, match="could run code"):
        convert(
            pickled(tmp_path / "bad.ckpt", {"weight": Harmful(written)}), tokenizer, tmp_path / "out", config=CONFIG
        )
    assert not written.exists()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for source, message in (
        (tmp_path / "text.ckpt", "could run code"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(source, tokenizer, tmp_path / "out", config=CONFIG)
    with pytest.raises(ModelError, match="list, not a state dict"):
        convert(pickled(tmp_path / "list.ckpt", [1]), tokenizer, tmp_path / "out", config=CONFIG)
    with pytest.raises(ModelError, match="already exists"):
        convert(tmp_path / "list.ckpt", tokenizer, tokenizer, config=CONFIG)


def test_fresh_start_keeps_the_encoder_only(tmp_path: Path, tokenizer: Path) -> None:
    source = pickled(tmp_path / "v0.ckpt", official_state_dict(tiny_mellow(1)))
    base_tensors = tiny_mellow(2).module.decoder.state_dict()
    shard = tokenizer / "model.safetensors"
    save_file({f"model.{name}": value.bfloat16() for name, value in base_tensors.items()}, shard)
    models = [convert(source, tokenizer, tmp_path / f"out{seed}", config=CONFIG, fresh_seed=seed) for seed in (0, 1)]
    again = convert(source, tokenizer, tmp_path / "again", config=CONFIG, fresh_seed=0).module.state_dict()
    trained = tiny_mellow(1).module.state_dict()
    for name, value in models[0].module.state_dict().items():
        assert torch.equal(value, again[name]), "the same seed, the same start"
        if name.startswith("encoder."):
            assert torch.equal(value, trained[name])
        elif name.startswith("decoder."):
            assert torch.equal(value, base_tensors[name.removeprefix("decoder.")].bfloat16().float())
    weights = [model.module.connector.linear1.weight for model in models]
    assert not torch.equal(*weights) and float(weights[0].abs().max()) <= (6 / (16 + 24)) ** 0.5
    save_file({"model.norm.weight": torch.zeros(24)}, shard)
    with pytest.raises(ModelError, match=r"missing: embed_tokens\.weight"):
        convert(source, tokenizer, tmp_path / "none", config=CONFIG, fresh_seed=0)


def test_converter_command_line(tmp_path: Path, tokenizer: Path) -> None:
    """The sizes are the released ones, so a tiny checkpoint is refused, in one line, with exit code 2."""
    released_tokenizer = byte_tokenizer()
    released_tokenizer.add_special_tokens([RELEASED["placeholder"]])
    released_tokenizer.save(str(tokenizer / "tokenizer.json"))
    source = pickled(tmp_path / "v0.ckpt", official_state_dict(tiny_mellow()))
    command = [sys.executable, "-m", "earwise.models.convert.mellow", str(source), "--tokenizer", str(tokenizer)]
    process = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {source}: tensors missing: ") and process.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sizes_of_the_decoder_are_those_of_the_folder_of_smollm2(tmp_path: Path) -> None:
    """The keys are those of the published config.json."""
    assert released_config(tmp_path) == RELEASED
    published = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576,
        "intermediate_size": 1536, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert released_config(tmp_path) == RELEASED
    (tmp_path / "config.json").write_text(json.dumps(published | {"num_hidden_layers": 2}))
    assert released_config(tmp_path)["decoder"]["num_hidden_layers"] == 2
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelError, match="model_type is 'gpt2'"):
        released_config(tmp_path)


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"convert\.mellow"):
        load()
    folder = tmp_path / "saved"
    tiny_mellow().save(folder)
    with pytest.raises(ModelError, match="'strict' is none of repaired, compat"):
        load(folder, template="strict")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"window_s": 30.0}, "the encoder sees 2.55 s"),
        ({"encoder": {"spec_size": "wide"}}, "no sizes"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=message):
            load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"decoder": config["decoder"] | {"num_hidden_layers": 3}}))
    with pytest.raises(ModelError, match=r"missing: decoder\.layers\.2\.input_layernorm\.weight"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(folder)


def test_template_is_chosen_by_the_folder_or_by_the_caller(tmp_path: Path) -> None:
    tiny_mellow(template="compat").save(tmp_path)
    assert load(tmp_path).template.name == "mellow-compat"
    assert load(tmp_path, template="repaired").template.name == "mellow"
    (tmp_path / "earwise.json").unlink()
    assert load(tmp_path).template.name == "mellow"


def test_dtype_is_that_of_the_decoder(tmp_path: Path) -> None:
    tiny_mellow().save(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    dtypes = {name.split(".")[0]: value.dtype for name, value in model.module.named_parameters()}
    assert dtypes == {"encoder": torch.float32, "connector": torch.float32, "decoder": torch.bfloat16}


def test_repaired_packing() -> None:
    model = tiny_mellow()
    path = conversation_path(model, question("Which?", 2), (4, 5), (RATE, 2001), generate=True)
    separator = model.eos_ids[0]
    # One second is 16 of the 32 output frames of 2 s; 2001 samples start the second frame of 2000.
    assert path.clips == (4,) * 17 + (-1,) + (5,) * 3 + (-1,) * (len(path.ids) - 21)
    text = [separator, *model.tokenizer.encode("Which? "), separator]
    assert [path.ids[17], *path.ids[21:]] == [separator, *text]
    assert answer_path(model, "b").ids[-1] == separator


@torch.no_grad()
def test_repaired_encodes_only_the_clip() -> None:
    """Silence after the end changes the number of tokens, never those before it (except for the mean over time)."""
    model = tiny_mellow()
    short, padded = tone(0.5), np.pad(tone(0.5), (0, RATE))
    first, second = model.project_audio(model.encode_audio([short, padded]))
    assert (len(first), len(second)) == (9, 25)
    assert torch.allclose(first[1:], second[1:9], atol=1e-5)
    assert not torch.allclose(first[0], second[0], atol=1e-2)
    states = model.module.encoder.states(torch.from_numpy(np.pad(short, (0, 48000)))[None])
    (encoder_states,) = model.encode_audio([short])
    assert torch.allclose(encoder_states[0, :16], states[0, :, :, :8].mean((1, 2)), atol=1e-6)


def test_compat_packing() -> None:
    model = tiny_mellow(template="compat")
    separator, fill = model.eos_ids[0], model.tokenizer.encode("!")[0]
    for turns, clips in ((question("Hi!?"), (3,)), (question("Hi!?", 2), (3, 8))):
        path = conversation_path(model, turns, clips, [RATE] * len(clips), generate=True)
        assert len(path.ids) == 389
        assert (path.ids[129], path.ids[259]) == (separator, separator)
        assert set(path.clips[:129]) == {3} and set(path.clips[130:259]) == {clips[-1]}
        words = [*model.tokenizer.encode("Hi"), fill, *model.tokenizer.encode("?")]
        assert list(path.ids[260:]) == words + [fill] * (129 - len(words))
    long = conversation_path(model, question("x" * 400), (0,), (RATE,), generate=True)
    assert len(long.ids) == 389 and fill not in long.ids[260:]
    conversation = (*question("Hi?"), Turn("assistant", (Text("ok"),)))
    path = conversation_path(model, conversation, (0,), (RATE,), generate=False)
    trained_ids = [token for token, trained in zip(path.ids, path.trained, strict=True) if trained]
    assert trained_ids == [*model.tokenizer.encode("ok"), separator]
    assert len(path.ids) == 389 + 3


@pytest.mark.parametrize(
    "turns",
    [
        question("Hi?", 0),
        question("Hi?", 3),
        (Turn("user", (Text("Before: "), Audio("0"), Text("Hi?"))),),
        (Turn("user", (Audio("0"), Text("and"), Audio("1"), Text("Hi?"))),),
        (*question("Hi?"), Turn("assistant", (Text("ok"),)), Turn("user", (Text("Sure?"),))),
    ],
)
def test_compat_refuses_what_the_released_packing_cannot_hold(turns: tuple[Turn, ...]) -> None:
    model = tiny_mellow(template="compat")
    clips = [number for number, part in enumerate(p for turn in turns for p in turn.parts if isinstance(p, Audio))]
    with pytest.raises(DataError, match="takes 1 to 2 sounds, then one question"):
        conversation_path(model, turns, clips, [RATE] * len(clips), generate=True)


@torch.no_grad()
def test_compat_repeats_a_short_clip() -> None:
    model = tiny_mellow(template="compat")
    short, tiled = model.encode_audio([tone(0.5), np.tile(tone(0.5), 4)])
    assert torch.equal(short, tiled) and len(short) == 33
    (embedded,) = model.project_audio([short])
    assert len(embedded) == model.audio_tokens(16000) == 129
    assert torch.equal(embedded[1::4], embedded[4::4])
    for samples in (0, 2 * RATE + 1):
        with pytest.raises(AudioError):
            model.audio_tokens(samples)


def test_batch_norm_statistics_stay_fixed() -> None:
    model = tiny_mellow()
    norm = model.module.encoder.clap.batch_norm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    model.module.train()
    model.encode_audio([tone(0.5)])
    assert model.module.decoder.training and not norm.training
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("template", ["repaired", "compat"])
def test_ask_on_the_command_line(tmp_path: Path, template: str) -> None:
    """Two bundled clips, options, and a folder that names its family and its template."""
    tiny_mellow(template=template).save(tmp_path / "model")
    clips = Path(str(files("earwise"))) / "assets" / "starter" / "clips"
    paths = [str(clips / name) for name in ("electricempirekit_ee_conga_2.ogg", "hardelectro1_hard_chh_01.ogg")]
    result = in_process(
        "ask", *paths, "which is louder?", "--choices", "first,second", "--model", tmp_path / "model", "--json",
        "--max-new-tokens", 4,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert sum(result.json["likelihood"].values()) == pytest.approx(1, abs=1e-3)
