"""Mellow's converter there and back, its two templates, what they refuse, what never changes while it is trained."""

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
from earwise.models.convert.mellow import EMBEDDING, HEAD, convert, official_shapes, official_state
from earwise.models.families.mellow import RELEASED, load
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.types import Audio, Text, Turn, Waveform
from families.mellow import CONFIG, tiny_mellow

RATE = 32000
SCORES = "audio_encoder.base.htsat.tscam_conv.weight"


def tone(seconds: float) -> Waveform:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * t) + 0.02 * np.random.default_rng(0).standard_normal(len(t))).astype(
        np.float32
    )


def asked(text: str, clips: int = 1) -> tuple[Turn, ...]:
    return (Turn("user", (*(Audio(f"{number}") for number in range(clips)), Text(text))),)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "smollm2"
    folder.mkdir()
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def pickled(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def test_converter_there_and_back(tmp_path: Path, tokenizer: Path) -> None:
    model = tiny_mellow(3)
    official = official_state(model)
    assert {name: tuple(value.shape) for name, value in official.items()} == official_shapes(model.module)
    for prefix in ("", "module."):
        source = pickled(tmp_path / "v0.ckpt", {prefix + name: value for name, value in official.items()})
        out = tmp_path / f"out{prefix}"
        convert(source, tokenizer, out, template="compat", config=CONFIG)
        loaded = base.load(str(out), device="cpu")
        assert loaded.template.name == "mellow-compat"
        assert loaded.revision == checkpoint.digest([out / "model.safetensors"])
        ours = model.module.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in loaded.module.state_dict().items())
        again = official_state(load(out))
        assert again.keys() == official.keys()
        assert all(torch.equal(value, official[name]) for name, value in again.items())
        assert not list(tmp_path.glob(".*.part"))


def spoiled(official: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    cosines = "audio_encoder.base.htsat.spectrogram_extractor.stft.conv_real.weight"
    changes: dict[str, dict[str, Tensor]] = {
        "missing": {},
        "unexpected": {"caption_decoder.gpt.wte": torch.zeros(1)},
        "shape": {SCORES: official[SCORES][:-1]},
        "front end": {cosines: official[cosines] * 1.01},
        "head": {HEAD: official[EMBEDDING] + 1},
    }
    return {name: value for name, value in official.items() if how != "missing" or name != SCORES} | changes[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", rf"missing: {SCORES}"),
        ("unexpected", r"unexpected: caption_decoder\.gpt\.wte"),
        ("shape", rf"wrong shape: {SCORES} \(11, 16, 2, 3\) for \(12, 16, 2, 3\)"),
        ("front end", r"conv_real\.weight is off by 0\.01"),
        ("head", "not the embedding table"),
    ],
)
def test_converter_refuses_other_checkpoints(tmp_path: Path, tokenizer: Path, how: str, says: str) -> None:
    source = pickled(tmp_path / "v0.ckpt", spoiled(official_state(tiny_mellow()), how))
    with pytest.raises(ModelError, match=says) as caught:
        convert(source, tokenizer, tmp_path / "out", config=CONFIG)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Harmful:
    """Would write a file while it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_converter_runs_no_code_and_reads_no_garbage(tmp_path: Path, tokenizer: Path) -> None:
    trap = tmp_path / "ran"
    with pytest.raises(ModelError, match="could run code"):
        convert(pickled(tmp_path / "bad.ckpt", {"weight": Harmful(trap)}), tokenizer, tmp_path / "out", config=CONFIG)
    assert not trap.exists()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for source, says in (
        (tmp_path / "text.ckpt", "could run code"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(ModelError, match=says):
            convert(source, tokenizer, tmp_path / "out", config=CONFIG)
    with pytest.raises(ModelError, match="list, not a state dict"):
        convert(pickled(tmp_path / "list.ckpt", [1]), tokenizer, tmp_path / "out", config=CONFIG)
    with pytest.raises(ModelError, match="already exists"):
        convert(tmp_path / "list.ckpt", tokenizer, tokenizer, config=CONFIG)


def test_fresh_start_keeps_the_encoder_only(tmp_path: Path, tokenizer: Path) -> None:
    source = pickled(tmp_path / "v0.ckpt", official_state(tiny_mellow(1)))
    base_state = tiny_mellow(2).module.decoder.state_dict()
    shard = tokenizer / "model.safetensors"
    save_file({f"model.{name}": value.bfloat16() for name, value in base_state.items()}, shard)
    made = [convert(source, tokenizer, tmp_path / f"out{seed}", config=CONFIG, fresh_seed=seed) for seed in (0, 1)]
    again = convert(source, tokenizer, tmp_path / "again", config=CONFIG, fresh_seed=0).module.state_dict()
    trained = tiny_mellow(1).module.state_dict()
    for name, value in made[0].module.state_dict().items():
        assert torch.equal(value, again[name]), "the same seed, the same start"
        if name.startswith("encoder."):
            assert torch.equal(value, trained[name])
        elif name.startswith("decoder."):
            assert torch.equal(value, base_state[name.removeprefix("decoder.")].bfloat16().float())
    weights = [model.module.connector.linear1.weight for model in made]
    assert not torch.equal(*weights) and float(weights[0].abs().max()) <= (6 / (16 + 24)) ** 0.5
    save_file({"model.norm.weight": torch.zeros(24)}, shard)
    with pytest.raises(ModelError, match=r"missing: embed_tokens\.weight"):
        convert(source, tokenizer, tmp_path / "none", config=CONFIG, fresh_seed=0)


def test_converter_command_line(tmp_path: Path, tokenizer: Path) -> None:
    """The sizes are the released ones, so a tiny checkpoint is refused, in one line, with exit code 2."""
    known = byte_tokenizer()
    known.add_special_tokens([RELEASED["placeholder"]])
    known.save(str(tokenizer / "tokenizer.json"))
    source = pickled(tmp_path / "v0.ckpt", official_state(tiny_mellow()))
    command = [sys.executable, "-m", "earwise.models.convert.mellow", str(source), "--tokenizer", str(tokenizer)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {source}: tensors missing: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="convert_mellow"):
        load()
    folder = tmp_path / "saved"
    tiny_mellow().save(folder)
    with pytest.raises(ModelError, match="'strict' is none of repaired, compat"):
        load(folder, template="strict")
    config = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"window_s": 30.0}, "the encoder sees 2.55 s"),
        ({"encoder": {"spec_size": "wide"}}, "no sizes"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=says):
            load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"decoder": config["decoder"] | {"num_hidden_layers": 3}}))
    with pytest.raises(ModelError, match=r"missing: decoder\.layers\.2\.input_layernorm\.weight"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(folder)


def test_template_is_chosen_by_the_folder_or_by_hand(tmp_path: Path) -> None:
    tiny_mellow(template="compat").save(tmp_path)
    assert load(tmp_path).template.name == "mellow-compat"
    assert load(tmp_path, template="repaired").template.name == "mellow"
    (tmp_path / "earwise.json").unlink()
    assert load(tmp_path).template.name == "mellow"


def test_half_precision_is_the_decoders(tmp_path: Path) -> None:
    tiny_mellow().save(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: value.dtype for name, value in model.module.named_parameters()}
    assert kinds == {"encoder": torch.float32, "connector": torch.float32, "decoder": torch.bfloat16}


def test_repaired_packing() -> None:
    model = tiny_mellow()
    path = conversation_path(model, asked("Which?", 2), (4, 5), (RATE, 2001), generate=True)
    separator = model.eos_ids[0]
    # One second is 16 of the 32 moments of 2 s; 2001 samples start the second moment of 2000.
    assert path.clips == (4,) * 17 + (-1,) + (5,) * 3 + (-1,) * (len(path.ids) - 21)
    text = [separator, *model.tokenizer.encode("Which? "), separator]
    assert [path.ids[17], *path.ids[21:]] == [separator, *text]
    assert answer_path(model, "b").ids[-1] == separator


@torch.no_grad()
def test_repaired_hears_only_what_exists() -> None:
    """Silence behind the end changes the number of tokens, never those before (but for the mean over time)."""
    model = tiny_mellow()
    short, padded = tone(0.5), np.pad(tone(0.5), (0, RATE))
    one, other = model.project_audio(model.encode_audio([short, padded]))
    assert (len(one), len(other)) == (9, 25)
    assert torch.allclose(one[1:], other[1:9], atol=1e-5)
    assert not torch.allclose(one[0], other[0], atol=1e-2)
    states = model.module.encoder.states(torch.from_numpy(np.pad(short, (0, 48000)))[None])
    (heard,) = model.encode_audio([short])
    assert torch.allclose(heard[0, :16], states[0, :, :, :8].mean((1, 2)), atol=1e-6)


def test_compat_packing() -> None:
    model = tiny_mellow(template="compat")
    separator, fill = model.eos_ids[0], model.tokenizer.encode("!")[0]
    for turns, clips in ((asked("Hi!?"), (3,)), (asked("Hi!?", 2), (3, 8))):
        path = conversation_path(model, turns, clips, [RATE] * len(clips), generate=True)
        assert len(path.ids) == 389
        assert (path.ids[129], path.ids[259]) == (separator, separator)
        assert set(path.clips[:129]) == {3} and set(path.clips[130:259]) == {clips[-1]}
        words = [*model.tokenizer.encode("Hi"), fill, *model.tokenizer.encode("?")]
        assert list(path.ids[260:]) == words + [fill] * (129 - len(words))
    long = conversation_path(model, asked("x" * 400), (0,), (RATE,), generate=True)
    assert len(long.ids) == 389 and fill not in long.ids[260:]
    told = (*asked("Hi?"), Turn("assistant", (Text("ok"),)))
    whole = conversation_path(model, told, (0,), (RATE,), generate=False)
    assert [whole.ids[at] for at, trained in enumerate(whole.trained) if trained] == [*model.tokenizer.encode("ok"), separator]
    assert len(whole.ids) == 389 + 3


@pytest.mark.parametrize(
    "turns",
    [
        asked("Hi?", 0),
        asked("Hi?", 3),
        (Turn("user", (Text("Before: "), Audio("0"), Text("Hi?"))),),
        (Turn("user", (Audio("0"), Text("and"), Audio("1"), Text("Hi?"))),),
        (*asked("Hi?"), Turn("assistant", (Text("ok"),)), Turn("user", (Text("Sure?"),))),
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


def test_batch_norm_never_drifts() -> None:
    model = tiny_mellow()
    norm = model.module.encoder.clap.batch_norm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    model.module.train()
    model.encode_audio([tone(0.5)])
    assert model.module.decoder.training and not norm.training
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("template", ["repaired", "compat"])
def test_asked_on_the_command_line(tmp_path: Path, template: str) -> None:
    """Two bundled clips, options, a folder that says its family and its template itself."""
    tiny_mellow(template=template).save(tmp_path / "model")
    clips = Path(str(files("earwise"))) / "assets" / "starter" / "clips"
    sounds = [str(clips / name) for name in ("electricempirekit_ee_conga_2.ogg", "hardelectro1_hard_chh_01.ogg")]
    done = in_process(
        "ask", *sounds, "which is louder?", "--choices", "first,second", "--model", tmp_path / "model", "--json",
        "--max-new-tokens", 4,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sum(done.json["likelihood"].values()) == pytest.approx(1, abs=1e-3)
