"""Building blocks of audio-language models, shared by the families: attention, encoders, connectors, LoRA."""
