"""Mellow at test size. The reference is an independent composition: spectra by convolution as in the released front
end, transformers' `ClapAudioModel` and `LlamaForCausalLM` with their own attention, the connector written out.
"""

from collections.abc import Sequence
from pathlib import Path
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
from families.transformers_audio import run_starts

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
    """Two layers on each side, clips of up to 2 s; weights large enough that every token matters."""
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
    """`(seq, vocab)` of one sequence, template `repaired`."""
    weights = {name.replace(".base_layer.", "."): value for name, value in model.module.state_dict().items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    clap = ClapAudioModel(htsat.config(**CONFIG["encoder"])).eval()
    clap.audio_encoder.load_state_dict(part("encoder.clap."))
    decoder = LlamaForCausalLM(LlamaConfig(**CONFIG["decoder"], tie_word_embeddings=True)).eval()
    decoder.config._attn_implementation = "eager"
    decoder.model.load_state_dict(part("decoder."))
    embeddings = decoder.model.embed_tokens(torch.tensor(ids)).clone()
    starts = run_starts(ids, model.placeholder_id)
    for start, waveform in zip(starts, waveforms, strict=True):
        cosines, sines, mel = front_end(model.module.encoder).values()
        padded = functional.pad(torch.from_numpy(waveform), (0, 64000 - len(waveform)))
        framed = functional.pad(padded[None, None], (512, 512), mode="reflect")
        power = sum(functional.conv1d(framed, filters, stride=320).square() for filters in (cosines, sines))
        decibels = 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ mel, min=1e-10))
        grid = clap(decibels[:, None]).last_hidden_state
        frames = (len(waveform) + 1999) // 2000
        scores = part("encoder.tscam_conv.")
        classes = functional.conv2d(grid, scores["weight"], scores["bias"], padding=(0, 1))[0, :, 0].T.sigmoid()
        latent = grid[0, :, :, :frames].flatten(1).mean(1)
        connector = part("connector.")
        classes = classes[:frames] @ connector["c2l.weight"].T + connector["c2l.bias"]
        linear = torch.cat([latent[None], classes]) @ connector["linear1.weight"].T
        total = linear + functional.gelu(linear) @ connector["linear2.weight"].T
        normed = functional.layer_norm(total, (24,), connector["layer_norm.weight"], connector["layer_norm.bias"])
        embeddings[start : start + 1 + frames] = normed
    logits: Tensor = decoder(inputs_embeds=embeddings[None]).logits[0]
    return logits


def tiny(seed: int = 0) -> Tiny:
    """The model with the template for training."""
    model = tiny_mellow(seed)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        return reference_logits(model, ids, waveforms)

    def reload(model: AudioLM, folder: Path) -> AudioLM:
        model.save(folder)
        return load(folder)

    return Tiny(model, reference, reload, max_s=2.0)
