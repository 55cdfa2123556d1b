"""The table of model families: one row each, from which everything else that knows families by name is derived.

To add a family, write its file in `models/families/` and its row here. Rows name code as `module:function` strings, so
that this table and `earwise models` import no torch. A user's own model needs no row: `--model module:function` loads
it.

Parameter counts leave out what is never computed here (vision, talker, vocoder) and LoRA that is merged when a
checkpoint is read; `tests/unit/models/test_memory.py` recomputes every number from transformers' classes.
"""

from dataclasses import replace

from earwise.models.family import DEFAULT_LORA_EXCLUDED, ModelFamily, NamePairs, OfficialFormat
from earwise.models.memory.sizes import (
    ATTENTION_PROJECTIONS,
    FUSED_PROJECTIONS,
    DecoderShape,
    EncoderShape,
    ModelSizes,
)

_WHISPER_LARGE = EncoderShape(32, 1280, 5120, 50.0)
_SMOLLM_135M = DecoderShape(30, 576, 9, 3, 64, 1536, 49152)
_QWEN2_7B = DecoderShape(28, 3584, 28, 4, 128, 18944, 152064)
_GRANITE_ENCODER = EncoderShape(16, 1024, 4096, 50.0)
_GEMMA_ENCODER = EncoderShape(12, 1536, 6144, 25.0)
_GEMMA4_ENCODER = EncoderShape(12, 1024, 4096, 25.0)

# Parameter names moved between transformers 4 (published checkpoints, vLLM) and transformers 5 (the classes here).
_AUDIO_CHAT_NAMES: NamePairs = (
    ("model.language_model.", "language_model.model."),
    ("model.audio_tower.", "audio_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_THINKER_NAMES: NamePairs = (
    ("model.language_model.", "thinker.model."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("lm_head.", "thinker.lm_head."),
    # For reading only: names of the thinker's own class in transformers 4, and of the full model in transformers 5.
    ("model.language_model.", "model."),
    ("model.audio_tower.", "audio_tower."),
    ("", "thinker."),
)
_EMBEDDED_NAMES: NamePairs = (("decoder.", "model."),)

FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name="embedded",
        summary="Whisper base and SmolLM2-135M, trained here; runs on a laptop",
        loader="earwise.models.embedded.model:load",
        parameter_names=_EMBEDDED_NAMES,
        lora_excluded=("head",),
        sizes=(
            ModelSizes(
                "in this package", 20_590_592, 4_055_495, 134_515_008, EncoderShape(6, 512, 2048, 50.0), _SMOLLM_135M,
                16000, 30.0, 3.125, dtype="float32",
            ),
        ),
    ),
    ModelFamily(
        name="embedded-aligned",
        summary="the same before it saw a question with options",
        loader="earwise.models.embedded.model:load_aligned",
        variant_of="embedded",
    ),
    ModelFamily(
        name="embedded-blank",
        summary="the same before any training",
        loader="earwise.models.embedded.model:load_blank",
        variant_of="embedded",
    ),
    ModelFamily(
        name="qwen2_audio",
        summary="Qwen2-Audio; R1-AQA and SARI start here",
        loader="earwise.models.families.qwen2_audio:load",
        model_types={"qwen2_audio": ""},
        hub="Qwen/Qwen2-Audio-7B-Instruct",
        build_empty="earwise.models.families.qwen2_audio:build_empty",
        parameter_names=_AUDIO_CHAT_NAMES,
        sizes=(
            ModelSizes(
                "Qwen/Qwen2-Audio-7B-Instruct", 636_968_960, 5_246_976, 7_754_878_976, _WHISPER_LARGE,
                DecoderShape(32, 4096, 32, 32, 128, 11008, 156032), 16000, 30.0, 25.0,
                same_sizes=("Qwen/Qwen2-Audio-7B", "mispeech/r1-aqa"),
            ),
        ),
    ),
    ModelFamily(
        name="qwen25_omni",
        summary="Qwen2.5-Omni's thinker: sound in, text out",
        loader="earwise.models.families.qwen25_omni:load",
        model_types={"qwen2_5_omni": "thinker", "qwen2_5_omni_thinker": ""},
        hub="Qwen/Qwen2.5-Omni-7B",
        build_empty="earwise.models.families.qwen25_omni:build_empty",
        parameter_names=_THINKER_NAMES,
        sizes=(
            ModelSizes(
                "Qwen/Qwen2.5-Omni-3B", 635_048_960, 2_623_488, 3_397_103_616, _WHISPER_LARGE,
                DecoderShape(36, 2048, 16, 2, 128, 11008, 151936), 16000, 300.0, 25.0,
            ),
            ModelSizes(
                "Qwen/Qwen2.5-Omni-7B", 635_048_960, 4_591_104, 7_615_616_512, _WHISPER_LARGE, _QWEN2_7B, 16000, 300.0,
                25.0,
            ),
        ),
    ),
    ModelFamily(
        name="salmonn",
        summary="Whisper, BEATs and Vicuna with LoRA",
        loader="earwise.models.families.salmonn:load",
        model_types={"salmonn": ""},
        build_empty="earwise.models.families.salmonn:build_empty",
        official=OfficialFormat("salmonn.pth", "earwise.models.convert.salmonn:release"),
        sizes=(
            ModelSizes(
                "tsinghua-ee/SALMONN-7B", 727_096_304, 25_991_936, 6_738_415_616, _WHISPER_LARGE,
                DecoderShape(32, 4096, 32, 32, 128, 11008, 32000), 16000, 30.0, 2.93, window_s=30.0, dtype="float16",
            ),
            ModelSizes(
                "tsinghua-ee/SALMONN", 727_096_304, 26_779_392, 13_015_864_320, _WHISPER_LARGE,
                DecoderShape(40, 5120, 40, 40, 128, 13824, 32000), 16000, 30.0, 2.93, window_s=30.0, dtype="float16",
            ),
        ),
    ),
    ModelFamily(
        name="mellow",
        summary="HTSAT and SmolLM2-135M; two sounds at once",
        loader="earwise.models.families.mellow:load",
        model_types={"mellow": ""},
        official=OfficialFormat("mellow.ckpt", "earwise.models.convert.mellow:release"),
        sizes=(
            ModelSizes(
                "soham97/mellow v0", 29_963_431, 1_180_800, 134_515_008, EncoderShape(12, 768, 3072, 409.6),
                _SMOLLM_135M, 32000, 10.0, 3.2, window_s=10.0, dtype="float32",
            ),
        ),
    ),
    ModelFamily(
        name="qwen3_omni",
        summary="Qwen3-Omni's thinker, a mixture of experts",
        loader="earwise.models.families.qwen3_omni:load",
        model_types={"qwen3_omni_moe": "thinker", "qwen3_omni_moe_thinker": ""},
        hub="Qwen/Qwen3-Omni-30B-A3B-Instruct",
        build_empty="earwise.models.families.qwen3_omni:build_empty",
        parameter_names=_THINKER_NAMES,
        sizes=(
            ModelSizes(
                "Qwen/Qwen3-Omni-30B-A3B-Instruct", 643_664_000, 4_263_168, 30_532_646_912,
                EncoderShape(32, 1280, 5120, 13.0),
                DecoderShape(48, 2048, 32, 4, 128, 6144, 152064, ATTENTION_PROJECTIONS, experts=True), 16000, 300.0,
                13.0,
            ),
        ),
    ),
    ModelFamily(
        name="audio_flamingo3",
        summary="Audio Flamingo 3",
        loader="earwise.models.families.audio_flamingo3:load",
        model_types={"audioflamingo3": ""},
        hub="nvidia/audio-flamingo-3-hf",
        build_empty="earwise.models.families.audio_flamingo3:build_empty",
        parameter_names=_AUDIO_CHAT_NAMES,
        sizes=(
            ModelSizes(
                "nvidia/audio-flamingo-3-hf", 636_968_960, 17_439_744, 7_612_806_656, _WHISPER_LARGE,
                replace(_QWEN2_7B, vocabulary=151672), 16000, 600.0, 25.0,
            ),
        ),
    ),
    ModelFamily(
        name="audio_flamingo_next",
        summary="Audio Flamingo Next; also Music Flamingo of 2026",
        loader="earwise.models.families.audio_flamingo_next:load",
        model_types={"musicflamingo": ""},
        hub="nvidia/audio-flamingo-next-hf",
        build_empty="earwise.models.families.audio_flamingo_next:build_empty",
        parameter_names=_AUDIO_CHAT_NAMES,
        sizes=(
            ModelSizes(
                "nvidia/audio-flamingo-next-hf", 636_968_960, 17_439_744, 7_612_806_656, _WHISPER_LARGE,
                replace(_QWEN2_7B, vocabulary=151672), 16000, 1800.0, 25.0,
            ),
        ),
    ),
    ModelFamily(
        name="voxtral",
        summary="Voxtral",
        loader="earwise.models.families.voxtral:load",
        model_types={"voxtral": ""},
        hub="mistralai/Voxtral-Mini-3B-2507",
        build_empty="earwise.models.families.voxtral:build_empty",
        parameter_names=_AUDIO_CHAT_NAMES,
        sizes=(
            ModelSizes(
                "mistralai/Voxtral-Mini-3B-2507", 636_968_960, 25_165_824, 4_014_136_320, _WHISPER_LARGE,
                DecoderShape(30, 3072, 32, 8, 128, 8192, 131072), 16000, 2400.0, 12.5, window_s=30.0,
            ),
            ModelSizes(
                "mistralai/Voxtral-Small-24B-2507", 636_968_960, 52_428_800, 23_572_403_200, _WHISPER_LARGE,
                DecoderShape(40, 5120, 32, 8, 128, 32768, 131072), 16000, 2400.0, 12.5, window_s=30.0,
            ),
        ),
    ),
    ModelFamily(
        name="granite_speech",
        summary="Granite Speech",
        loader="earwise.models.families.granite_speech:load",
        model_types={"granite_speech": ""},
        hub="ibm-granite/granite-speech-3.3-2b",
        build_empty="earwise.models.families.granite_speech:build_empty",
        parameter_names=(
            ("model.language_model.", "language_model.model."),
            ("model.encoder.", "encoder."),
            ("model.projector.", "projector."),
            ("lm_head.", "language_model.lm_head."),
        ),
        lora_in_checkpoint=True,
        sizes=(
            ModelSizes(
                "ibm-granite/granite-speech-3.3-2b", 439_980_288, 35_697_664, 2_533_541_888, _GRANITE_ENCODER,
                DecoderShape(40, 2048, 32, 8, 64, 8192, 49160), 16000, 13107.2, 10.0,
            ),
            ModelSizes(
                "ibm-granite/granite-speech-3.3-8b", 439_980_288, 37_796_864, 8_170_868_736, _GRANITE_ENCODER,
                DecoderShape(40, 4096, 32, 8, 128, 12800, 49160), 16000, 13107.2, 10.0,
            ),
        ),
    ),
    ModelFamily(
        name="phi4_multimodal",
        summary="Phi-4-multimodal with its speech adapter",
        loader="earwise.models.families.phi4_multimodal:load",
        model_types={"phi4_multimodal": ""},
        hub="microsoft/Phi-4-multimodal-instruct@refs/pr/70",
        build_empty="earwise.models.families.phi4_multimodal:build_empty",
        sizes=(
            ModelSizes(
                "microsoft/Phi-4-multimodal-instruct", 441_254_144, 12_589_056, 3_836_021_760,
                EncoderShape(24, 1024, 1536, 12.5),
                DecoderShape(32, 3072, 24, 8, 128, 8192, 200064, FUSED_PROJECTIONS), 16000, 327.68, 12.5,
            ),
        ),
    ),
    ModelFamily(
        name="gemma3n",
        summary="Gemma 3n without its image tower",
        loader="earwise.models.families.gemma3n:load",
        model_types={"gemma3n": ""},
        hub="google/gemma-3n-E2B-it",
        build_empty="earwise.models.families.gemma3n:build_empty",
        lora_excluded=("lm_head", "correction_coefs"),  # in training the class reads the weight of the second
        sizes=(
            ModelSizes(
                "google/gemma-3n-E2B-it", 681_348_640, 3_345_408, 4_435_182_688, _GEMMA_ENCODER,
                DecoderShape(30, 2048, 8, 2, 256, 8192, 262400), 16000, 30.0, 6.25, window_s=30.0,
            ),
            ModelSizes(
                "google/gemma-3n-E4B-it", 681_348_640, 3_345_408, 6_835_235_568, _GEMMA_ENCODER,
                DecoderShape(35, 2048, 8, 2, 256, 16384, 262400), 16000, 30.0, 6.25, window_s=30.0,
            ),
        ),
    ),
    ModelFamily(
        name="gemma4",
        summary="Gemma 4 E2B and E4B without their image tower",
        loader="earwise.models.families.gemma4:load",
        model_types={"gemma4": ""},
        hub="google/gemma-4-E2B-it",
        build_empty="earwise.models.families.gemma4:build_empty",
        sizes=(
            ModelSizes(
                "google/gemma-4-E2B-it", 304_824_608, 2_359_296, 4_628_569_344, _GEMMA4_ENCODER,
                DecoderShape(35, 1536, 8, 1, 256, 12288, 262144), 16000, 30.0, 25.0,
            ),
            ModelSizes(
                "google/gemma-4-E4B-it", 304_824_608, 3_932_160, 7_463_013_376, _GEMMA4_ENCODER,
                DecoderShape(42, 2560, 8, 2, 256, 10240, 262144), 16000, 30.0, 25.0,
            ),
        ),
    ),
)  # fmt: skip


def find(name: str) -> ModelFamily | None:
    """The row of a family; None if there is none of this name."""
    return next((family for family in FAMILIES if family.name == name), None)


def get(name: str) -> ModelFamily:
    """The row of a family that is known to exist.

    Raises:
        KeyError: if it does not.
    """
    family = find(name)
    if family is None:
        raise KeyError(f"no family {name!r} in models/registry.py; add a row to FAMILIES")
    return family


def base_family(name: str) -> ModelFamily | None:
    """The family whose sizes and parameter names `name` has: itself, or the one that it is a variant of; None if there
    is no such family."""
    family = find(name)
    return find(family.variant_of) if family is not None and family.variant_of else family


def names() -> tuple[str, ...]:
    """Names of all families."""
    return tuple(family.name for family in FAMILIES)


def loaders() -> dict[str, str]:
    """Name of each family -> `module:function` that loads it."""
    return {family.name: family.loader for family in FAMILIES}


def model_types() -> dict[str, str]:
    """`model_type` of a checkpoint's config.json -> name of its family."""
    return {model_type: family.name for family in FAMILIES for model_type in family.model_types}


def sizes(name: str) -> tuple[ModelSizes, ...]:
    """The published models of a family, smallest first; () for an unknown one."""
    family = base_family(name)
    return family.sizes if family is not None else ()


def default_sizes(name: str) -> ModelSizes | None:
    """The published model of a family that is loaded if no weights are given; None for an unknown one."""
    family = base_family(name)
    return family.default_sizes if family is not None else None


def parameter_names(name: str) -> NamePairs:
    """How the parameter names of a family begin, here and in published checkpoints; () if the names are the same."""
    family = base_family(name)
    return family.parameter_names if family is not None else ()


def family_of_published(repository: str) -> str:
    """The family of a published checkpoint by its name on a hub; "" if it is none of those that are declared."""
    return next((family.name for family in FAMILIES for sizes in family.sizes if sizes.is_of(repository)), "")


def lora_excluded(model_name: str) -> tuple[str, ...]:
    """What `target_modules: all-linear` leaves out in a loaded model, by its name; see `ModelFamily`."""
    family = base_family(family_of_model(model_name))
    return family.lora_excluded if family is not None else DEFAULT_LORA_EXCLUDED


def family_of_model(model_name: str) -> str:
    """The family of a loaded model: its name begins with that of its family; "" if there is no such family."""
    matches = [family.name for family in FAMILIES if model_name.startswith(family.name)]
    return max(matches, key=len, default="")
