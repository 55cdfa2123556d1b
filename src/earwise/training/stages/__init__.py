"""The kinds of training stages: SFT, DPO, GRPO and compression.

`stage.py` has the interface and `table.py` the list of kinds. SFT, DPO and compression share the pipeline of
`supervised.py`; GRPO is in `grpo.py` with its rollouts in `earwise.training.rollout`.
"""
