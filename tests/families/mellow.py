"""Mellow at test size. The reference is put together anew: spectra by convolution as in the released front end,
transformers' `ClapAudioModel` and `LlamaForCausalLM` with their own attention, the connector written out.
"""

from collections.abc import Sequence
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import ClapAudioModel, LlamaConfig, LlamaForCausalLM

from builders import byte_tokenizer
from earwise.models.base import AudioLM
from earwise.models.convert.mellow import front_end
from earwise.models.families.mellow import Mellow, MellowModule, load
from earwise.models.parts import htsat
from earwise.types import Waveform
from families.tiny import Tiny

CONFIG: dict[str, Any] = {
    "model_type": "mellow",
    "window_s": 2.0,
    "encoder": {
        "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_embeds_hidden_size": 8, "depths": [2, 2],
        "num_attention_heads": [2, 2], "num_classes": 12, "hidden_size": 16,
    },
    "decoder": {
        "vocab_size": 272, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": 0, "eos_token_id": 0,
    },
    "placeholder": "<|AUDIO|>",
}  # fmt: skip


def tiny_mellow(seed: int = 0, template: str = "repaired") -> Mellow:
    """Two layers on each side, hears 2 s; weights large enough that every token matters."""
    module = MellowModule(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * (1.0 if "embed_tokens" in name else parameter[0].numel() ** -0.5))
        norm = module.encoder.clap.batch_norm
        norm.running_mean.copy_(-20 + torch.randn(norm.running_mean.shape, generator=generator))
        norm.running_var.fill_(40.0)
    return Mellow(module, CONFIG, byte_tokenizer(), template=template, name="tiny-mellow")


def reference_logits(model: Mellow, ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
    """`(seq, vocab)` of one sequence alone, template `repaired`."""
    state = {name.replace(".base_layer.", "."): value for name, value in model.module.state_dict().items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    clap = ClapAudioModel(htsat.config(**CONFIG["encoder"])).eval()
    clap.audio_encoder.load_state_dict(part("encoder.clap."))
    decoder = LlamaForCausalLM(LlamaConfig(**CONFIG["decoder"], tie_word_embeddings=True)).eval()
    decoder.config._attn_implementation = "eager"
    decoder.model.load_state_dict(part("decoder."))
    embeddings = decoder.model.embed_tokens(torch.tensor(ids)).clone()
    starts = [
        at for at, one in enumerate(ids)
        if one == model.placeholder_id and (at == 0 or ids[at - 1] != model.placeholder_id)
    ]  # fmt: skip
    for start, wave in zip(starts, waveforms, strict=True):
        cosines, sines, mel = front_end(model.module.encoder).values()
        sound = functional.pad(torch.from_numpy(wave), (0, 64000 - len(wave)))
        framed = functional.pad(sound[None, None], (512, 512), mode="reflect")
        power = sum(functional.conv1d(framed, filters, stride=320).square() for filters in (cosines, sines))
        decibels = 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ mel, min=1e-10))
        grid = clap(decibels[:, None]).last_hidden_state
        moments = (len(wave) + 1999) // 2000
        weights = part("encoder.tscam_conv.")
        classes = functional.conv2d(grid, weights["weight"], weights["bias"], padding=(0, 1))[0, :, 0].T.sigmoid()
        latent = grid[0, :, :, :moments].flatten(1).mean(1)
        own = part("connector.")
        features = torch.cat([latent[None], classes[:moments] @ own["c2l.weight"].T + own["c2l.bias"]])
        straight = features @ own["linear1.weight"].T
        total = straight + functional.gelu(straight) @ own["linear2.weight"].T
        out = functional.layer_norm(total, (24,), own["layer_norm.weight"], own["layer_norm.bias"])
        embeddings[start : start + 1 + moments] = out
    logits: Tensor = decoder(inputs_embeds=embeddings[None]).logits[0]
    return logits


def tiny(seed: int = 0) -> Tiny:
    """For the shared suite; the template for training."""
    model = tiny_mellow(seed)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        return reference_logits(model, ids, waveforms)

    def reload(changed: AudioLM, folder: Folder) -> AudioLM:
        changed.save(folder)
        return load(folder)

    return Tiny(model, reference, reload, max_s=2.0)
