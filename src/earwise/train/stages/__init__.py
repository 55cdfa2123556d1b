"""The training stages: supervised, preferences, reinforcement learning and chain compression."""
