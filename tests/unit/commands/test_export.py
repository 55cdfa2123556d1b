"""`earwise export` after a run with LoRA: the whole model for transformers' own class, the adapter for PEFT."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2AudioForConditionalGeneration

from builders import hf_inputs, max_abs, tiny_qwen2_audio, tone, user_question
from earwise import cli
from earwise.config.recipe import check_recipe
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.data import manifest
from earwise.forest import TokenPath, build_tree, pack
from earwise.models import base
from earwise.models.convert.mellow import from_official
from earwise.models.convert.salmonn import released_names
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import conversation_path
from earwise.training import run
from earwise.types import Audio, Example, Text, Turn
from families import embedded, mellow, salmonn
from families.forests import lora, ready

STAGE = {
    "kind": "sft",
    "data": {"mixture": [{"manifest": "rows.jsonl"}]},
    "max_steps": 2,
    "clips_per_step": 1,
    "questions_per_clip": 1,
    "optimizer": {"learning_rate": 2e-2, "lr_scheduler_type": "constant"},
    "trainable": {"connector": "frozen", "lora": {"r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj", "up_proj"]}},
}
SIDE_FILES = {"tokenizer_config.json": '{"model_max_length": 4096}', "chat_template.jinja": "{{ messages }}"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages that trained LoRA; its base checkpoint is in `base` beside it."""
    folder = tmp_path_factory.mktemp("export")
    tiny_qwen2_audio(4).save(folder / "base")
    for name, content in SIDE_FILES.items():
        (folder / "base" / name).write_text(content)
    soundfile.write(folder / "a.wav", tone(0.4), 16000)
    manifest.write(
        folder / "rows.jsonl",
        [Example("a", (Turn("user", (Audio("a.wav"), Text("pitch?"))),), ("low",), ("low", "high"), root=folder)],
    )
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    recipe = {"recipe": "t", "model": model, "stages": [STAGE | {"name": "one"}, STAGE | {"name": "two"}]}
    run.start(check_recipe(recipe, "t"), folder / "run", folder)
    return folder / "run"


@torch.no_grad()
def logits(module: torch.nn.Module) -> Tensor:
    path = conversation_path(tiny_qwen2_audio(), user_question("What?"), [0], [8000], generate=True)
    scores: Tensor = module(**hf_inputs(path, {0: tone(0.5)})).logits[0]
    return scores


def reference_model(folder: Path, **settings: object) -> Qwen2AudioForConditionalGeneration:
    settings = {"attn_implementation": "eager"} | settings
    return Qwen2AudioForConditionalGeneration.from_pretrained(folder, **settings).eval()


def export(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert cli.run(["export", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_merged_export_is_a_checkpoint_of_the_published_kind(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = export(capsys, "--model", trained, "--out", out)
    assert {"model.safetensors", "config.json", "tokenizer.json", "earwise.json", "README.md"} <= set(result["files"])
    assert "merged.safetensors" not in result["files"], "all weights are in model.safetensors"
    names = set(load_file(out / "model.safetensors"))
    assert {"language_model.model.layers.0.self_attn.q_proj.weight", "language_model.lm_head.weight"} <= names
    assert {"audio_tower.conv1.weight", "multi_modal_projector.linear.weight"} <= names
    assert not any("lora" in name for name in names)
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == config["text_config"]["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == "float32"
    for name, content in SIDE_FILES.items():
        assert (out / name).read_text() == content
    ours = base.load(str(trained))
    theirs = reference_model(out)
    assert theirs.config.text_config.rope_parameters == ours.module.config.text_config.rope_parameters
    assert max_abs([logits(theirs) - logits(reference_model(trained / "final"))]) == 0
    assert max_abs([logits(theirs) - logits(reference_model(trained.parent / "base"))]) > 1e-3
    half = tmp_path / "half"
    export(capsys, "--model", trained, "--out", half, "--dtype", "bfloat16")
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    assert max_abs([logits(reference_model(half, dtype=torch.float32)) - logits(theirs)]) < 0.1
    assert base.load(str(half)).template == ours.template


@pytest.mark.parametrize("names", ["published", "transformers5"])
def test_a_peft_export_contains_what_the_last_stage_added(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str
) -> None:
    out = tmp_path / "lora"
    result = export(capsys, "--model", trained, "--out", out, "--format", "peft", "--names", names)
    start = (trained / "stage-0-one" / "final").resolve()
    assert result["base"] == str(start)
    prefix = "base_model.model.language_model.model." if names == "published" else "base_model.model.model.language_m"
    assert all(name.startswith(prefix) for name in load_file(out / "adapter_model.safetensors"))
    final = logits(reference_model(trained / "final"))
    assert max_abs([logits(reference_model(start)) - final]) > 1e-3
    if names == "transformers5":
        assert max_abs([logits(PeftModel.from_pretrained(reference_model(start), out)) - final]) < 1e-5
    again = base.load(str(out))
    again.module.model.language_model.config._attn_implementation = "eager"
    assert max_abs([logits(again.module) - final]) < 1e-5
    first = export(capsys, "--model", trained / "stage-0-one", "--out", tmp_path / "first", "--format", "peft")
    assert first["base"] == str(trained.parent / "base")
    named = export(
        capsys, "--model", trained, "--out", tmp_path / "named", "--format", "peft", "--base", "somebody/base"
    )
    assert named["base"] == "somebody/base"


def test_a_model_without_an_adapter_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, message in (
        (trained.parent / "base", "no adapter was kept here"),
        ("qwen2_audio", "name the folder of a"),
    ):
        assert cli.run(["export", "--model", str(model), "--out", str(tmp_path / "x"), "--format", "peft"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_lora_over_another_text_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder that was initialised at random, or trained in full, is in the checkpoint as a whole: embedding table,
    last norm and nine weights per layer. LoRA over the released text model would be a model that nobody trained."""
    model = embedded.tiny(0).model
    model.full_weights = frozenset(name for name, _ in model.module.named_parameters() if name.startswith("decoder."))
    ready(model, lora(model))
    model.save(tmp_path / "run")
    changed = "20 weights of its decoder were drawn at random or trained in full"
    for name, message in ((str(tmp_path / "run"), changed), ("embedded-blank", "nothing of it was trained")):
        arguments = ["--model", name, "--out", str(tmp_path / "out"), "--format", "peft", "--base", "somebody/base"]
        assert cli.run(["export", *arguments]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_aligned_models_adapter_is_without_the_second_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = []
    for name in ("embedded-aligned", "embedded"):
        export(capsys, "--model", name, "--out", tmp_path / name, "--format", "peft")
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        ranks.append(tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["r"] == len(ranks[-1])
    assert 0 < len(ranks[0]) < len(ranks[1]) and torch.equal(ranks[0], ranks[1][: len(ranks[0])])


@torch.no_grad()
def test_the_embedded_models_adapter_fits_its_text_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = embedded.tiny(0).model
    config = LlamaConfig(**model.module.decoder.config.transformers_fields(), attn_implementation="eager")
    text = LlamaForCausalLM(config).eval()
    text.model.load_state_dict(model.module.decoder.state_dict())
    before = text(torch.tensor([[5, 6, 7]])).logits
    ready(model, lora(model))
    model.save(tmp_path / "run")
    result = export(capsys, "--model", tmp_path / "run", "--out", tmp_path / "lora", "--format", "peft")
    assert result["base"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    after = PeftModel.from_pretrained(text, tmp_path / "lora")(torch.tensor([[5, 6, 7]])).logits
    forest = pack([build_tree([TokenPath((5, 6, 7), (False,) * 3, (-1,) * 3)])])
    ours = model.logits(model.decode(model.embed(forest.ids), forest.positions, TreeAttention(forest)))
    assert max_abs([after[0] - ours]) < 1e-4
    assert max_abs([after - before]) > 1e-2


def test_official_files_of_mellow_and_salmonn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mellow_model = mellow.tiny_mellow()
    mellow_model.save(tmp_path / "mellow")
    export(capsys, "--model", tmp_path / "mellow", "--out", tmp_path / "m", "--format", "official")
    tensors = torch.load(tmp_path / "m" / "mellow.ckpt", weights_only=True)
    read_again = from_official(tensors, mellow.CONFIG, tmp_path / "m" / "mellow.ckpt").state_dict()
    assert all(torch.equal(value, read_again[name]) for name, value in mellow_model.module.state_dict().items())

    lora_config = LoraConfig(r=2, lora_alpha=8.0, target_modules=("q_proj", "v_proj"))
    salmonn_model = ready(salmonn.tiny().model, TrainableConfig(connector="frozen", lora=lora_config))
    salmonn_model.save(tmp_path / "salmonn")
    export(capsys, "--model", tmp_path / "salmonn", "--out", tmp_path / "s", "--format", "official")
    content = torch.load(tmp_path / "s" / "salmonn.pth", weights_only=True)
    assert set(content["model"]) == set(released_names(base.load(str(tmp_path / "salmonn")).module).values())


def test_other_families_have_no_official_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(["export", "--model", str(trained), "--out", str(tmp_path / "o"), "--format", "official"]) == 2
    assert "use --format merged" in capsys.readouterr().err and not (tmp_path / "o").exists()
