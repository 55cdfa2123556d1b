"""What we use of transformers, peft, TRL, accelerate and torch beyond their public interfaces, with a test of each.

`INTERNALS` is the only list of it. A test that fails here says in one line which package broke what and where we use
it; fix it there first, most other failures of that run will be its consequences. `test_the_list_is_complete` finds
private names and inner modules in `src` and `benchmarks` that nobody listed.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from earwise.models.cpu_decode import fused_layers
from earwise.models.decoders import transformers_decoder
from earwise.models.parts import gradient_checkpointing, lora_product
from families.embedded import transformers_encoder
from families.tiny import FAMILIES

ROOT = Path(__file__).parents[2]
LIBRARIES = ("transformers", "peft", "trl", "accelerate", "torch")
SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


@cache
def tiny(family: str) -> Any:
    """A family's module at test size."""
    module, _, function = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), function)(0).model.module


def check_attention_function() -> None:
    """Keywords reach the attention function through the decoder; layers know their number and scale."""
    for model_class, config in ((LlamaModel, LlamaConfig(**SIZES)), (Qwen2Model, Qwen2Config(**SIZES))):
        config._attn_implementation = transformers_decoder.IMPLEMENTATION
        calls: list[tuple[int, tuple[int, ...], tuple[int, ...], float]] = []

        def attend(
            layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None,
            calls: Any = calls,
        ) -> Tensor:  # fmt: skip
            assert window is None
            calls.append((layer, tuple(queries.shape), tuple(keys.shape), scale))
            return queries

        transformers_decoder.decode_packed(model_class(config).eval(), torch.zeros(3, 32), torch.arange(3), attend)
        assert calls == [(layer, (1, 4, 3, 8), (1, 2, 3, 8), 8**-0.5) for layer in (0, 1)]


def check_recomputed_layers() -> None:
    """Layers call the function that they are given, in training mode."""
    model = LlamaModel(LlamaConfig(**SIZES)).train()
    assert gradient_checkpointing.enable_gradient_checkpointing(model) == SIZES["num_hidden_layers"]
    calls = []
    for layer in model.layers:
        original = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, original=original, **named: (
            calls.append(1) or original(*args, **named)
        )
    model(inputs_embeds=torch.zeros(1, 3, 32, requires_grad=True), use_cache=False).last_hidden_state.sum().backward()
    assert len(calls) == SIZES["num_hidden_layers"]


def check_fused_layers() -> None:
    """Decoder layers have the parts that `fused_layers` reads, are called as it, and return a tensor."""
    for model_class, config in ((LlamaModel, LlamaConfig(**SIZES)), (Qwen2Model, Qwen2Config(**SIZES))):
        config._attn_implementation = transformers_decoder.IMPLEMENTATION
        model = model_class(config).eval()
        layer = model.layers[0]
        assert fused_layers.is_supported_layer(layer)
        calls: list[tuple[int, set[str], type]] = []
        layer.register_forward_hook(
            lambda _, args, named, out, calls=calls: calls.append((len(args), set(named), type(out))), with_kwargs=True
        )
        transformers_decoder.decode_packed(
            model, torch.zeros(3, 32), torch.arange(3), lambda layer, queries, keys, values, scale, window: queries
        )
        ((positional, named, kind),) = calls
        assert positional == 1 and {"position_embeddings", "attend_with"} <= named and issubclass(kind, Tensor)
        assert {"layer_idx", "head_dim", "scaling"} <= vars(layer.self_attn).keys()
        assert all(
            hasattr(norm, "variance_epsilon") for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        parts_of(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
        parts_of(layer, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn")


def check_loading_report() -> None:
    """A model is made from tensors alone, and the report names what is missing, left over and of another shape."""
    state = LlamaForCausalLM(LlamaConfig(**SIZES)).state_dict()
    del state["model.norm.weight"]
    state |= {"strange.weight": torch.zeros(1), "lm_head.weight": torch.zeros(3, 3)}
    _, report = LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig(**SIZES), state_dict=state, dtype="auto", output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    assert set(report["missing_keys"]) == {"model.norm.weight"}
    assert set(report["unexpected_keys"]) == {"strange.weight"}
    assert {key[0] for key in report["mismatched_keys"]} == {"lm_head.weight"}


def check_reverted_names() -> None:
    """Names of parameters go back to those of released files."""
    from transformers.core_model_loading import revert_weight_conversion

    module = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert revert_weight_conversion(module, module.state_dict()).keys() == module.state_dict().keys()
    assert "save_original_format" in inspect.signature(module.save_pretrained).parameters


def check_whisper_encoder() -> None:
    """The encoder has the parts that are run one by one on frames that exist."""
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    encoder = transformers_encoder(sizes | {"num_mel_bins": 16, "max_source_positions": 20})
    parts_of(encoder, "conv1.weight", "conv2", "embed_positions.weight", "layer_norm", "layers.0.self_attn.num_heads")
    whisper_layer(encoder.layers[0])


def check_clap() -> None:
    """HTSAT's encoder inside CLAP says how wide and how long its output is."""
    parts_of(tiny("mellow"), "encoder.clap.num_features", "encoder.clap.input_resolutions", "encoder.clap.batch_norm")


def check_towers() -> None:
    """The parts of transformers' audio towers that are run by hand have their names."""
    tower = tiny("audio_flamingo3").model.audio_tower
    parts_of(tower, "conv1", "conv2", "embed_positions.weight", "layers", "layer_norm", "avg_pooler")
    tower = tiny("qwen3_omni").model.audio_tower
    parts_of(tower, "conv2d1", "conv2d2", "conv2d3", "conv_out", "conv_chunksize", "n_window_infer", "ln_post")
    parts_of(tower, "positional_embedding.positional_embedding", "proj1", "act", "proj2")
    whisper_layer(tower.layers[0])
    parts_of(tiny("voxtral").model, "audio_tower", "multi_modal_projector")
    parts_of(tiny("granite_speech").model, "encoder.input_linear.weight", "projector.linear.weight")
    audio = tiny("phi4_multimodal").model.embed_tokens_extend.audio_embed
    parts_of(audio, "encoder.embed.out.weight", "up_proj_for_speech", "down_proj_for_speech")
    parts_of(tiny("qwen2_audio").model, "audio_tower", "multi_modal_projector", "language_model.embed_tokens.weight")


def check_gemma() -> None:
    """Gemma 3n's class can be put together without its image tower."""
    module = tiny("gemma3n")
    parts_of(module.model.language_model, "embed_tokens_per_layer", "get_per_layer_inputs")
    assert hasattr(module.model.language_model, "_keys_to_ignore_on_load_unexpected")
    parts_of(module.model.embed_audio, "embedding_projection.weight", "vocab_offset")
    parts_of(module.model.audio_tower, "subsample_conv_projection.input_proj_linear.weight")
    assert module._tied_weights_keys == {"lm_head.weight": "model.language_model.embed_tokens.weight"}


def check_gemma4() -> None:
    """Gemma 4 looks up per-layer embeddings by id, and its encoder says which states are real."""
    module = tiny("gemma4")
    parts_of(module.model.language_model, "embed_tokens_per_layer", "get_per_layer_inputs")
    parts_of(module.model.embed_audio, "embedding_projection.weight")
    parts_of(module.model.audio_tower, "output_proj.weight")


def check_time_rotation() -> None:
    """Music Flamingo's module of rotary time embeddings and the function that applies them."""
    from transformers.models.musicflamingo.modeling_musicflamingo import apply_rotary_time_emb

    cos, sin = tiny("audio_flamingo_next").model.pos_emb(torch.zeros(1, 3), seq_len=3)
    states = torch.randn(1, 3, cos.shape[-1] + 2)
    assert torch.equal(apply_rotary_time_emb(states, cos, sin), states), "time 0 is no rotation"


def check_generation_wrapper() -> None:
    """Classes of ours may say what they can do; the loops of transformers read it there."""
    from transformers import PreTrainedModel, Trainer

    assert "_supports_sdpa" in vars(PreTrainedModel)
    assert "accepts_loss_kwargs" in inspect.getsource(Trainer)


def check_causal_loss() -> None:
    """transformers' loss shifts labels itself and averages over answer tokens."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    loss = ForCausalLMLoss(torch.zeros(1, 3, 5), torch.tensor([[-100, 1, 2]]), vocab_size=5)
    assert float(loss) == pytest.approx(torch.tensor(5.0).log().item())


def check_peft_layer() -> None:
    """A LoRA layer has the attributes that are read, and a `forward` set on the instance is the one that is called."""
    from peft import LoraConfig, inject_adapter_in_model

    module = nn.Sequential(nn.Linear(4, 4))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0"]), module)
    layer: Any = module[0]
    parts_of(layer, "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight", "lora_dropout.default")
    assert layer.scaling == {"default": 3.0} and layer.use_dora["default"] is False
    assert (layer.merged, layer.disable_adapters) == (False, False)
    layer.enable_adapters(False)
    assert layer.disable_adapters is True
    layer.enable_adapters(True)
    nn.init.ones_(layer.lora_B["default"].weight)
    rows = torch.ones(1, 4)
    plain = module(rows)
    assert lora_product.fuse_lora_layers(module) == 1 and isinstance(
        vars(layer)["forward"], lora_product.FusedLoraForward
    )
    assert torch.allclose(module(rows), plain)


def check_trl_methods() -> None:
    """The trainer's steps that the benchmark lets hear have their names and parameters."""
    trl = pytest.importorskip("trl")
    expected = {
        "_tokenize_prompts": ["prompts"],
        "_generate_single_turn": ["prompt_ids"],
        "_generate_and_score_completions": ["inputs"],
        "_compute_loss": ["model", "inputs"],
        "_get_per_token_logps_and_entropies": ["model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"],
    }
    for name, parameters in expected.items():
        actual = list(inspect.signature(getattr(trl.GRPOTrainer, name)).parameters)[1:]
        assert actual[: len(parameters)] == parameters, f"{name} takes {', '.join(actual)}"


def check_accelerate_variables() -> None:
    """The launcher hands its choice of FSDP to the processes in these variables."""
    launch = inspect.getsource(importlib.import_module("accelerate.utils.launch"))
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD", "FSDP_OFFLOAD_PARAMS"):
        assert name in launch, f"the launcher no longer sets {name}"


def check_mkl_linear() -> None:
    """Weights packed for MKL give the plain product."""
    if not torch.backends.mkl.is_available():
        pytest.skip("torch was built without MKL; nothing is packed there")
    weight, rows = torch.randn(8, 16), torch.randn(4, 16)
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, 4)
    assert torch.allclose(torch.ops.mkl._mkl_linear(rows, packed, weight, None, 4), rows @ weight.T, atol=1e-5)


def check_vnni() -> None:
    """torch says whether the processor multiplies 8-bit integers without intermediate 16-bit sums."""
    assert isinstance(torch.cpu._is_vnni_supported(), bool)


def check_onednn_bfloat16() -> None:
    """Weights packed for oneDNN give the product of bfloat16 rows, for any number of rows."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor or build has no bfloat16 kernels; torch's ordinary product is used there")
    weight = torch.randn(32, 64).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    for count in (1, 64, 200):
        rows = torch.randn(count, 64).bfloat16()
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        assert torch.allclose(product.float(), rows.float() @ weight.float().T, rtol=2**-7, atol=1e-3)


def check_versions_of_tensors() -> None:
    """A tensor counts the changes made in place."""
    weight = torch.zeros(2)
    before = weight._version
    weight.add_(1)
    assert weight._version > before


def check_dispatch_mode() -> None:
    """A mode sees every operator that is called inside."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func)
            return func(*args, **(kwargs or {}))

    with Recorder():
        torch.zeros(2)[torch.tensor([True, False])]
    assert torch.ops.aten.index.Tensor in names
    assert torch.Tag.dynamic_output_shape in torch.ops.aten.nonzero.default.tags
    assert torch.ops.aten.linear.default._can_decompose() and not torch.ops.aten.mm.default._can_decompose()


def check_dynamo() -> None:
    """The number of compiled variants that are kept can be raised and read."""
    assert isinstance(torch._dynamo.config.recompile_limit, int)
    assert hasattr(torch._dynamo.utils, "counters")


def check_triton() -> None:
    """torch says whether its compiler for GPUs is there."""
    from torch.utils._triton import has_triton

    assert has_triton() in (True, False)


def check_tensorboard_writer() -> None:
    """Events can be written with a time of our own."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    assert callable(tensorboard.SummaryWriter._get_file_writer)


@dataclass(frozen=True, slots=True)
class Internal:
    """A name beyond a public interface.

    Attributes:
        library: Package whose release may break it.
        names: As they stand in our files: private attributes, or inner modules that are imported.
        files: Where we use them.
        why: What for, as the end of a sentence.
        check: Fails if the library no longer has it, or does something else.
    """

    library: str
    names: tuple[str, ...]
    files: tuple[str, ...]
    why: str
    check: Callable[[], None]


FAMILY_FILES = "src/earwise/models/families/"
PARTS = "src/earwise/models/parts/"
MODELS = "src/earwise/models/"
INTERNALS = (
    Internal(
        "transformers",
        ("_attn_implementation",),
        (
            f"{FAMILY_FILES}transformers_audio.py",
            f"{FAMILY_FILES}qwen2_audio.py",
            f"{FAMILY_FILES}salmonn.py",
            f"{FAMILY_FILES}mellow.py",
            f"{FAMILY_FILES}audio_flamingo3.py",
            f"{FAMILY_FILES}phi4_multimodal.py",
            f"{MODELS}decoders/transformers_decoder.py",
            "benchmarks/baselines/hf_models.py",
        ),
        "the forest's attention is set for the text model alone and gets its keywords through the decoder",
        check_attention_function,
    ),
    Internal(
        "transformers",
        ("transformers.modeling_layers", "_gradient_checkpointing_func"),
        (f"{PARTS}gradient_checkpointing.py",),
        "layers are computed again in the backward pass",
        check_recomputed_layers,
    ),
    Internal(
        "transformers",
        ("transformers.models.llama.modeling_llama",),
        (
            f"{MODELS}cpu_decode/fused_layers.py",
            f"{MODELS}decoders/transformers_decoder.py",
            f"{FAMILY_FILES}mellow.py",
        ),
        "decoder layers are computed with packed weights",
        check_fused_layers,
    ),
    Internal(
        "transformers",
        ("mismatched_keys",),
        (f"{FAMILY_FILES}transformers_audio.py", f"{FAMILY_FILES}qwen2_audio.py"),
        "checkpoints that do not fit are refused by name",
        check_loading_report,
    ),
    Internal(
        "transformers",
        ("transformers.core_model_loading",),
        (f"{FAMILY_FILES}transformers_audio.py",),
        "a thinker is saved under the names of the full model",
        check_reverted_names,
    ),
    Internal(
        "transformers",
        ("transformers.models.whisper.modeling_whisper",),
        (f"{FAMILY_FILES}salmonn.py", "benchmarks/baselines/hf_models.py"),
        "clips are encoded on frames that exist",
        check_whisper_encoder,
    ),
    Internal(
        "transformers",
        ("transformers.models.clap.modeling_clap",),
        (f"{PARTS}htsat.py",),
        "Mellow listens through CLAP's encoder",
        check_clap,
    ),
    Internal(
        "transformers",
        ("audio_tower",),
        (
            f"{FAMILY_FILES}audio_flamingo3.py",
            f"{FAMILY_FILES}qwen3_omni.py",
            f"{FAMILY_FILES}voxtral.py",
            f"{FAMILY_FILES}qwen2_audio.py",
        ),
        "audio towers are run part by part, each clip alone or masked",
        check_towers,
    ),
    Internal(
        "transformers",
        ("transformers.models.gemma3n.modeling_gemma3n",),
        (f"{FAMILY_FILES}gemma3n.py",),
        "Gemma 3n is put together without its image tower",
        check_gemma,
    ),
    Internal(
        "transformers",
        ("audio_tower",),
        (f"{FAMILY_FILES}gemma4.py",),
        "Gemma 4's clips are encoded apart from its decoder",
        check_gemma4,
    ),
    Internal(
        "transformers",
        ("transformers.models.musicflamingo.modeling_musicflamingo",),
        (f"{FAMILY_FILES}audio_flamingo_next.py",),
        "states of Audio Flamingo Next are rotated by their time in the clip",
        check_time_rotation,
    ),
    Internal(
        "transformers",
        ("transformers.modeling_outputs", "_supports_sdpa", "accepts_loss_kwargs"),
        ("benchmarks/baselines/hf_models.py",),
        "transformers' own loops train and sample the embedded model",
        check_generation_wrapper,
    ),
    Internal(
        "transformers",
        ("transformers.modeling_outputs",),
        ("benchmarks/baselines/collator.py",),
        "transformers' Trainer is given batches with sound",
        check_generation_wrapper,
    ),
    Internal(
        "transformers",
        ("transformers.loss.loss_utils",),
        ("benchmarks/sft_step.py",),
        "the benchmark's loss is the Trainer's own",
        check_causal_loss,
    ),
    Internal(
        "peft",
        ("lora_A", "base_layer", "disable_adapters"),
        (f"{PARTS}lora.py", f"{PARTS}lora_product.py", f"{MODELS}cpu_decode/fused_layers.py"),
        "LoRA layers are computed as one operation, packed and merged",
        check_peft_layer,
    ),
    Internal(
        "trl",
        (
            "_tokenize_prompts",
            "_generate_single_turn",
            "_generate_and_score_completions",
            "_compute_loss",
            "_get_per_token_logps_and_entropies",
        ),
        ("benchmarks/baselines/trl_step.py",),
        "GRPOTrainer is made to hear",
        check_trl_methods,
    ),
    Internal(
        "accelerate",
        ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS"),
        ("src/earwise/training/distributed/parallel.py",),
        "a process learns how it was launched",
        check_accelerate_variables,
    ),
    Internal(
        "accelerate",
        ("FSDP_RESHARD_AFTER_FORWARD",),
        ("src/earwise/training/distributed/sharding.py",),
        "a process learns whether weights are gathered twice",
        check_accelerate_variables,
    ),
    Internal(
        "torch",
        ("_mkl_reorder_linear_weight", "_mkl_linear"),
        (f"{MODELS}cpu_decode/fused_layers.py",),
        "weights are packed once for decoding on a CPU",
        check_mkl_linear,
    ),
    Internal(
        "torch",
        ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise"),
        (f"{MODELS}precision/bfloat16_products.py", f"{MODELS}precision/probe.py"),
        "products with frozen weights in bfloat16 on a CPU",
        check_onednn_bfloat16,
    ),
    Internal(
        "torch",
        ("_is_vnni_supported",),
        (f"{MODELS}precision/int8_products.py",),
        "the largest 8-bit input whose products do not overflow on this processor",
        check_vnni,
    ),
    Internal(
        "torch",
        ("_version",),
        (f"{MODELS}cpu_decode/prepacked.py", f"{MODELS}precision/bfloat16_products.py"),
        "packed weights are renewed when theirs change",
        check_versions_of_tensors,
    ),
    Internal(
        "torch",
        ("torch.utils._python_dispatch", "_can_decompose"),
        ("src/earwise/engine/static_cache.py", "src/earwise/training/limits/operators.py"),
        "operators whose shapes depend on values are found before a CUDA graph is captured; operators are counted",
        check_dispatch_mode,
    ),
    Internal(
        "torch",
        ("_dynamo",),
        (f"{PARTS}flex.py", "benchmarks/gpu.py"),
        "FlexAttention keeps its compiled variants, and they are counted",
        check_dynamo,
    ),
    Internal(
        "torch",
        ("torch.utils._triton",),
        (f"{PARTS}attention.py",),
        "FlexAttention is used where it can compile",
        check_triton,
    ),
    Internal(
        "torch",
        ("_get_file_writer",),
        ("src/earwise/training/logging/trackers.py",),
        "TensorBoard gets events of the past",
        check_tensorboard_writer,
    ),
)
PUBLIC = {"transformers.audio_utils"}
"""Inner modules that transformers documents as public."""
PUBLIC_NAMES = {"_replace", "_asdict", "_fields", "_exit"}
"""Documented names that begin with an underscore: of named tuples, and `os._exit`."""
"""Public methods of named tuples, whose underscore only keeps them apart from fields."""


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.library}-{internal.check.__name__}")
def test_the_library_still_has_it(internal: Internal) -> None:
    try:
        internal.check()
    except Exception as error:
        problem = " ".join(str(error).split())[:300] or "its check failed"
        pytest.fail(
            f"{internal.library} {version(internal.library)} broke {', '.join(internal.names)} ({problem}), which "
            f"{', '.join(internal.files)} use: {internal.why}",
            pytrace=False,
        )


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.library}-{internal.check.__name__}")
def test_the_files_use_what_is_listed(internal: Internal) -> None:
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in internal.files]
    assert [name for name in internal.names if not any(name in text for text in texts)] == []


def test_the_list_is_complete() -> None:
    """No private attribute of other packages and no import of an inner module that the table does not have."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("src", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    ours = {name for tree in trees.values() for name in names_defined_in(tree)}
    listed = {(file, name) for internal in INTERNALS for file in internal.files for name in internal.names}
    unlisted = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in internals_used_in(tree, ours)
        if (str(path.relative_to(ROOT)), name) not in listed
    ]
    assert unlisted == [], "beyond public interfaces; list it in INTERNALS with a check, or do without"


def names_defined_in(tree: ast.AST) -> set[str]:
    """Functions, classes, variables and attributes of `self` that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def internals_used_in(tree: ast.AST, ours: set[str]) -> list[tuple[int, str]]:
    """Line and name of private attributes that nobody here defines, and of imported inner modules."""
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
            parts = node.module.split(".")
            inner = parts[0] == "transformers" and len(parts) > 1 and node.module not in PUBLIC
            if inner or any(part.startswith("_") for part in parts):
                used.append((node.lineno, node.module))
        elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in ours | PUBLIC_NAMES:
            used.append((node.lineno, node.attr))
    return used


def parts_of(module: Any, *paths: str) -> None:
    """Each dotted path leads from the module to something."""
    for path in paths:
        place = module
        for part in path.split("."):
            inside = place[int(part)] if part.isdigit() else getattr(place, part, None)
            if inside is None and isinstance(place, nn.ModuleDict):
                inside = place[part]
            assert inside is not None, f"{type(module).__name__} has no {path}"
            place = inside


def whisper_layer(layer: Any) -> None:
    """The layer has the parts that `whisper.encoder_layer` runs."""
    parts_of(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    parts_of(layer, "self_attn.num_heads", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
