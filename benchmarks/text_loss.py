"""How well the default model's decoder still writes text: its loss on a text, beside that of the untrained decoder.

    python benchmarks/text_loss.py TEXT --out benchmarks/results/text-loss.json

The text is cut into pieces of 256 tokens, and every token but a piece's first is predicted. The untrained decoder is
SmolLM2-135M-Instruct as it is downloaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from baselines.timing import machine
from torch import Tensor
from torch.nn import functional

from earwise.files import write_json
from earwise.models.base import load

PIECE = 256
"""Tokens of a piece."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="loss of the default model's decoder on a text")
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--pieces", type=int, default=40, help="pieces from the beginning of the text")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    text = " ".join(options.text.read_text().split())
    names = ("embedded-blank", options.model)
    losses = {name: text_loss(load(name, device="cpu"), text, options.pieces) for name in names}
    write_json(options.out, {"machine": machine(), "text": options.text.name, "nats_per_token": losses})
    print(losses)


@torch.inference_mode()
def text_loss(model: Any, text: str, pieces: int) -> float:
    """Mean negative log-likelihood of a text's tokens, in nats."""
    ids = torch.tensor(model.tokenizer.encode(text)[: PIECE * pieces])
    total = 0.0
    count = 0
    for piece in ids.split(PIECE):
        hidden = model.decode(model.embed(piece), torch.arange(len(piece)), _causal)
        log_probabilities = torch.log_softmax(model.logits(hidden[:-1]).float(), -1)
        total -= float(log_probabilities.gather(1, piece[1:, None]).sum())
        count += len(piece) - 1
    return total / count


def _causal(
    layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Attention of each token to itself and those before it."""
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale, enable_gqa=True)


if __name__ == "__main__":
    main()
