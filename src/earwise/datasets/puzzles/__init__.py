"""Questions about unlabelled recordings whose answers are known because of how the sound was put together."""
