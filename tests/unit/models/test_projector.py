"""The connector by hand: pooling, batches, ridge start, and what is kept of what was heard."""

import numpy as np
import pytest
import torch

from builders import sound, tiny_qwen2_audio
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.projector import LayerMix, pool_states, ridge_start


def test_pooling_gives_mean_deviation_and_windows_whose_last_is_the_mean_of_what_is_left() -> None:
    states = torch.arange(5.0).reshape(1, 5, 1)
    pooled = pool_states(states, 2)[0, :, 0]
    assert pooled[0] == 2.0
    assert pooled[1] == pytest.approx(2**0.5)
    assert pooled[2:].tolist() == [0.5, 2.5, 4.0]


@pytest.mark.parametrize("states", [1, 2, 15, 16, 17, 32, 33])
def test_one_token_per_started_window(states: int) -> None:
    assert pool_states(torch.randn(3, states, 4), 16).shape == (3, 2 + -(-states // 16), 4)


def test_a_batch_of_clips_equals_each_alone() -> None:
    torch.manual_seed(0)
    connector = LayerMix(3, 8, 12, summary=2, rank=4)
    clips = [torch.randn(3, 2 + n, 8) for n in (1, 4, 2)]
    together = connector(clips)
    assert [len(out) for out in together] == [8 + 1, 8 + 4, 8 + 2]  # 2 x (lead 2 + 1) + lead 2
    for clip, out in zip(clips, together, strict=True):
        torch.testing.assert_close(connector([clip])[0], out)
    assert connector([]) == []


def test_ridge_start_points_summary_tokens_at_the_label_embeddings() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (60,), generator=generator)
    meanings = torch.randn(4, 12, generator=generator)
    shapes = torch.randn(4, 3, 1, 8, generator=generator)
    heard = [shapes[label] + 0.1 * torch.randn(3, 5, 8, generator=generator) for label in labels.tolist()]
    target = meanings[labels]
    half = target.clone()
    half[::2] = float("nan")  # unknown for every other clip
    connector = LayerMix(3, 8, 12, summary=2, rank=4)
    leads = torch.randn(3, 2, 12, generator=generator)
    explained = ridge_start(connector, heard, [target, half], leads, strength=0.1)
    assert min(explained) > 0.95
    with torch.no_grad():
        out = connector(heard)
    assert torch.equal(out[0][:2], leads[0])
    assert torch.equal(out[5][6:8], leads[2])
    for token in (2, 5):
        nearest = torch.cdist(torch.stack([clip[token] for clip in out]), meanings).argmin(1)
        assert (nearest == labels).all()
    frames = torch.cdist(torch.stack([clip[9] for clip in out]), meanings).argmin(1)
    assert (frames == labels).float().mean() > 0.9


def test_ears_hear_every_sound_once_and_forget_the_oldest() -> None:
    model = tiny_qwen2_audio()
    calls: list[int] = []
    encode_audio = model.encode_audio

    class Counting:
        def __init__(self) -> None:
            self.module = model.module

        def encode_audio(self, waveforms: list[np.ndarray]) -> list[torch.Tensor]:
            calls.append(len(waveforms))
            return encode_audio(waveforms)

    encoder_cache = EncoderCache(Counting(), batch=2, keep_mb=1)  # type: ignore[arg-type]
    waveforms = [sound(0.5, 300), sound(0.9, 500), sound(0.5, 300)]
    first = encoder_cache.encoder_states(waveforms)
    assert sum(calls) == 2
    assert first[0] is first[2]
    assert torch.equal(encoder_cache.encoder_states(waveforms[:1])[0], first[0])
    assert sum(calls) == 2
    small = EncoderCache(Counting(), batch=1, keep_mb=0)  # type: ignore[arg-type]
    small.encoder_states(waveforms[:1])
    small.encoder_states(waveforms[:1])
    assert sum(calls) == 4
