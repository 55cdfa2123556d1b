"""Helpers of the shared suite for any family: clips, conversations, forests of them, and runs through the contract."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from earwise.audio import num_samples
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import AudioError
from earwise.forest import TokenPath, build_tree, insert_audio_embeddings, pack
from earwise.models.base import AudioLM
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable
from earwise.types import Audio, Role, Text, Turn, Waveform
from families.tiny import Tiny

# Possible texts of the audio placeholder; a family whose placeholder has no text has none of them.
PLACEHOLDERS = (
    "<|AUDIO|>", "<file_sep>", "<|audio_pad|>", "<|audio|>", "<sound>", "[AUDIO]", "<audio_soft_token>", "<Speech>",
    "<|endoftext11|>", "<audio>",
)  # fmt: skip


@contextmanager
def base_weights_of(folder: Path) -> Iterator[None]:
    """Inside the block, base weights from a checkpoint's folder (the embedded family's) are used."""
    previous = os.environ.get("EARWISE_HOME")
    if (folder / "home").is_dir():
        os.environ["EARWISE_HOME"] = str(folder / "home")
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop("EARWISE_HOME", None)
        else:
            os.environ["EARWISE_HOME"] = previous


def make_clip(model: AudioLM, seconds: float, hertz: float = 440.0, seed: int = 0) -> Waveform:
    """A tone with an overtone over noise, at the model's sample rate."""
    rate = model.spec.sample_rate
    time = np.arange(num_samples(seconds, rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.1 * np.sin(2 * np.pi * 2.7 * hertz * time)
    return (tone + 0.02 * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def lengths(tiny: Tiny) -> tuple[float, float]:
    """Two clip lengths in seconds that the family takes whole; multiples of 20 ms, so that no encoder state is
    partial."""
    return round(0.25 * tiny.max_s, 2), round(0.16 * tiny.max_s, 2)


def turn(role: Role, text: str, *clips: int) -> Turn:
    """A turn with these clips before its text."""
    return Turn(role, (*(Audio(f"{clip}.wav") for clip in clips), Text(text)))


def conversation(
    model: AudioLM, turns: Sequence[Turn], waveforms: Mapping[int, Waveform], *, generate: bool = True
) -> TokenPath:
    """The path of a conversation whose clips are named by their numbers."""
    parts = [part for turn in turns for part in turn.parts]
    clips = [int(part.path.split(".")[0]) for part in parts if isinstance(part, Audio)]
    return conversation_path(model, tuple(turns), clips, [len(waveforms[clip]) for clip in clips], generate=generate)


def scores(model: AudioLM, path: TokenPath, waveforms: Mapping[int, Waveform]) -> Tensor:
    """Logits `(seq, vocab)` of one path through the contract."""
    forest = pack([build_tree([path])])
    clips = sorted(set(forest.audio_clips))
    projected = model.project_audio(model.encode_audio([waveforms[clip] for clip in clips]))
    audio_embeddings = dict(zip(clips, projected, strict=True))
    embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, audio_embeddings)
    return model.logits(model.decode(embeddings, forest.positions, TreeAttention(forest)))


def trees(model: AudioLM, waveforms: Mapping[int, Waveform]) -> list[list[TokenPath]]:
    """Three trees with uneven branches: two questions with three answers that share beginnings, a single answer, and
    text without a clip.
    """
    first = [
        conversation(model, [turn("user", question, 0)], waveforms) + answer_path(model, answer)
        for question in ("What is it?", "What do you hear in it?")
        for answer in ("a dog", "a dog barks at noon", "sea")
    ]
    second = [conversation(model, [turn("user", "And this?", 1)], waveforms) + answer_path(model, "a siren")]
    third = [
        conversation(model, [turn("user", "No sound: what is two plus two?")], waveforms) + answer_path(model, answer)
        for answer in ("four", "four, or so", "4")
    ]
    return [first, second, third]


FULL = TrainableConfig(encoder="full", connector="full", decoder="full")


def lora(model: AudioLM, part: str = "decoder") -> TrainableConfig:
    """LoRA on the default layers of the decoder (all linear ones) and a fully trained connector, or LoRA on the encoder
    alone."""
    lora_config = LoraConfig(r=2, lora_alpha=6.0)
    if part == "encoder":
        return TrainableConfig(encoder="lora", connector="frozen", decoder="frozen", lora=lora_config)
    return TrainableConfig(connector="full", decoder="lora", lora=lora_config)


def ready(model: AudioLM, config: TrainableConfig, *, moved: bool = True) -> AudioLM:
    """Prepare a model for training; `moved` moves LoRA away from its zero start, so that it has an effect."""
    torch.manual_seed(0)  # LoRA's first matrix is initialised by torch's global generator
    set_trainable(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if moved and "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def one_by_one(model: AudioLM, paths: Sequence[TokenPath], waveforms: Mapping[int, Waveform]) -> list[Tensor]:
    """Log-probabilities of each path's trained tokens, one path at a time."""
    policy = Policy(model)
    return [policy(pack([build_tree([path])]), {}, waveforms)[0] for path in paths]


def valid_lengths(model: AudioLM, longest_s: float) -> list[int]:
    """Sample counts from 50 ms to `longest_s`, also odd ones, that give at least one audio token."""
    rate = model.spec.sample_rate
    candidates = [num_samples(longest_s * step / 12, rate) - step * 7 % 11 for step in range(1, 13)]
    valid = []
    for samples in (num_samples(0.05, rate), num_samples(0.1, rate) + 1, *candidates):
        try:
            model.audio_tokens(samples)
        except AudioError:
            continue
        valid.append(samples)
    return sorted(set(valid))
