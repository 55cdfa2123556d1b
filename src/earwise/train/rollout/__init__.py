"""Everything between a prompt and a scored completion in reinforcement learning."""
