"""The modules of the embedded model as one module, and random weights of its decoder."""

from torch import Tensor, nn

from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.parts import whisper


class EmbeddedModule(nn.Module):
    """The three parts as one module, whose parameter names start with `encoder.`, `connector.` and `decoder.`.

    Args:
        encoder: Whisper's encoder.
        connector: See `models.embedded.connector`.
        decoder: Llama without output head; the head is tied to its embeddings.
        speech_gate: See `models.embedded.spoken_words`; None for models without one.
    """

    encoder: whisper.WhisperEncoder

    def __init__(
        self, encoder: whisper.WhisperEncoder, connector: nn.Module, decoder: LlamaDecoder,
        speech_gate: nn.Linear | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.speech_gate = speech_gate
        self.connector = connector
        self.decoder = decoder
        vocab_size, width = decoder.embed_tokens.weight.shape
        self.head = nn.Linear(width, vocab_size, bias=False, device="meta")
        self.head.weight = decoder.embed_tokens.weight  # tied


def random_decoder_weights(sizes: LlamaSizes) -> dict[str, Tensor]:
    """Random weights of a decoder as transformers initialises them, from torch's global generator."""
    from transformers import LlamaConfig, LlamaModel

    weights: dict[str, Tensor] = LlamaModel(LlamaConfig(**sizes.transformers_fields())).state_dict()
    return weights
