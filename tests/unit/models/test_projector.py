"""The embedded model's connector by hand: pooling, batches, ridge initialisation; and the encoder cache."""

import numpy as np
import pytest
import torch

from builders import tiny_qwen2_audio, tone
from earwise.models.embedded.ridge_init import ridge_init
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.projector import LayerMix, pool_states


def test_pooling_gives_mean_deviation_and_windows_of_which_the_last_may_be_short() -> None:
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


def test_ridge_initialisation_maps_clips_to_their_label_embeddings() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (60,), generator=generator)
    label_embeddings = torch.randn(4, 12, generator=generator)
    label_states = torch.randn(4, 3, 1, 8, generator=generator)
    clips = [label_states[label] + 0.1 * torch.randn(3, 5, 8, generator=generator) for label in labels.tolist()]
    target = label_embeddings[labels]
    half_labelled = target.clone()
    half_labelled[::2] = float("nan")  # every other clip has no label
    connector = LayerMix(3, 8, 12, summary=2, rank=4)
    leads = torch.randn(3, 2, 12, generator=generator)
    explained = ridge_init(connector, clips, [target, half_labelled], leads, strength=0.1)
    assert min(explained) > 0.95
    with torch.no_grad():
        out = connector(clips)
    assert torch.equal(out[0][:2], leads[0])
    assert torch.equal(out[5][6:8], leads[2])
    for token in (2, 5):
        nearest = torch.cdist(torch.stack([clip[token] for clip in out]), label_embeddings).argmin(1)
        assert (nearest == labels).all()
    frames = torch.cdist(torch.stack([clip[9] for clip in out]), label_embeddings).argmin(1)
    assert (frames == labels).float().mean() > 0.9


def test_the_encoder_cache_encodes_every_clip_once_and_drops_the_oldest() -> None:
    model = tiny_qwen2_audio()
    batch_sizes: list[int] = []
    encode_audio = model.encode_audio

    class CountingModel:
        def __init__(self) -> None:
            self.module = model.module

        def encode_audio(self, waveforms: list[np.ndarray]) -> list[torch.Tensor]:
            batch_sizes.append(len(waveforms))
            return encode_audio(waveforms)

    encoder_cache = EncoderCache(CountingModel(), batch_size=2, max_mb=1)  # type: ignore[arg-type]
    waveforms = [tone(0.5, 300), tone(0.9, 500), tone(0.5, 300)]
    first = encoder_cache.encoder_states(waveforms)
    assert sum(batch_sizes) == 2
    assert first[0] is first[2]
    assert torch.equal(encoder_cache.encoder_states(waveforms[:1])[0], first[0])
    assert sum(batch_sizes) == 2
    small = EncoderCache(CountingModel(), batch_size=1, max_mb=0)  # type: ignore[arg-type]
    small.encoder_states(waveforms[:1])
    small.encoder_states(waveforms[:1])
    assert sum(batch_sizes) == 4
