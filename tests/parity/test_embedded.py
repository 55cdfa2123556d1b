"""The embedded model with its real base weights, compared with transformers' own classes: decoder, encoder, batches,
and packed trees."""

import json
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from builders import max_abs, tone, user_question
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.embedded import base_weights
from earwise.models.embedded import model as embedded
from earwise.models.embedded.model import Embedded
from earwise.models.parts import whisper
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.policy import Policy
from families.embedded import transformers_encoder

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not (base_weights.cache_dir() / base_weights.BASE / "complete").exists(),
        reason="no base weights in EARWISE_HOME; `make test` fetches them",
    ),
]


@pytest.fixture(scope="module")
def model() -> Iterator[Embedded]:
    with torch.inference_mode(False):
        yield embedded.load_untrained(trim=True)


@torch.no_grad()
def test_decoder_equals_llama(model: Embedded) -> None:
    config = LlamaConfig(**model.module.decoder.config.transformers_fields(), attn_implementation="eager")
    reference = LlamaForCausalLM(config).eval()
    reference.model.load_state_dict(load_file(base_weights.base_folder() / "decoder.safetensors"))
    reference.tie_weights()
    text = "<|im_start|>user\nWhich sound is this?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    ids = torch.tensor(model.tokenizer.encode(text))
    forest = pack([build_tree([TokenPath(tuple(ids.tolist()), (False,) * len(ids), (-1,) * len(ids))])])
    logits = model.logits(model.decode(model.embed(ids), forest.positions, TreeAttention(forest)))
    expected = reference(input_ids=ids[None]).logits[0]
    assert max_abs([logits.log_softmax(-1) - expected.log_softmax(-1)]) < 2e-4
    # A language model with correctly converted weights knows this.
    assert model.tokenizer.decode([int(logits[-1].argmax())]).strip() == "Paris"


@torch.no_grad()
def test_encoder_equals_whisper_on_a_full_window(model: Embedded) -> None:
    encoder = model.module.encoder
    mel = torch.randn(encoder.num_mel_bins, 3000, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    reference = transformers_encoder(encoder.config, encoder.state_dict())
    expected = reference(mel[None], output_hidden_states=True)
    (states,) = whisper.layer_states(encoder, [mel])
    assert states.shape == (len(encoder.layers) + 1, 1500, 512)
    scale = float(expected.last_hidden_state.abs().max())
    assert max_abs([states[-1] - expected.last_hidden_state[0]]) < 1e-4 * scale
    for layer in range(len(encoder.layers)):
        assert max_abs([states[layer] - expected.hidden_states[layer][0]]) < 1e-4 * float(
            expected.hidden_states[layer].abs().max()
        )


@torch.no_grad()
def test_a_batch_encodes_each_clip_as_if_alone(model: Embedded) -> None:
    waveforms = [
        tone(seconds, 300 * (number + 1), number) for number, seconds in enumerate((1.7, 0.005, 0.33, 1.0, 1.005))
    ]
    for together, waveform in zip(model.encode_audio(waveforms), waveforms, strict=True):
        (alone,) = model.encode_audio([waveform])
        assert together.shape == alone.shape
        assert max_abs([together - alone]) < 1e-4 * float(alone.abs().max())
        assert len(model.project_audio([alone])[0]) == model.audio_tokens(len(waveform))


@torch.no_grad()
def test_packed_trees_equal_separate_paths(model: Embedded) -> None:
    waveforms = {0: tone(1.0), 1: tone(0.4, 900)}
    trees: list[list[TokenPath]] = []
    for clip, answers in (
        (0, ["a dog barks", "a door", "a dog", "a dog barks"]),
        (1, ["<answer>siren</answer>", "<answer>sea</answer>"]),
    ):
        paths = []
        for question in ("What is it?", "What do you hear?"):
            prompt = conversation_path(model, user_question(question), [clip], [len(waveforms[clip])], generate=True)
            paths += [prompt + answer_path(model, answer) for answer in answers]
        trees.append(paths)
    encoder_states = dict(enumerate(model.encode_audio(list(waveforms.values()))))
    policy = Policy(model)
    forest = pack([build_tree(paths) for paths in trees])
    rows: Tensor = policy(forest, encoder_states, {})
    assert len(forest) < sum(len(path.ids) for paths in trees for path in paths) / 2
    for row, path in zip(rows, (path for paths in trees for path in paths), strict=True):
        alone = policy(pack([build_tree([path])]), encoder_states, {})[0]
        assert max_abs([row[: len(alone)] - alone]) < 1e-4


def test_the_model_has_the_sizes_of_the_config(model: Embedded) -> None:
    sizes = json.loads((base_weights.base_folder() / "decoder.json").read_text())
    assert sum(parameter.numel() for parameter in model.module.decoder.parameters()) == 134_515_008
    assert (
        model.module.decoder.config.vocab_size == sizes["vocab_size"] == len(model.module.decoder.embed_tokens.weight)
    )
