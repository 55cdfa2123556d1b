"""Text decoders: Llama as plain modules, and the decoder classes of transformers under the attention of a forest."""
