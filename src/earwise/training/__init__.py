"""Training: a recipe's stages, one after the other.

The flow of a run: `check_recipe.py` opens the rows and looks for mistakes before a model is loaded. `run.py` loads the
model, freezes what is not trained (`trainable.py`) and makes the class that the table `stages/table.py` names for the
kind of the stage. For each optimizer step the `Trainer` (`trainer.py`) asks the stage for micro-batches: rows are drawn
from a mixture, their clips decoded (`clip_loader.py`), tokenised into trees that share the audio, and packed
(`batches.py`); in GRPO the branches are completions that were sampled and rewarded before (`rollout/`). The policy
(`policy.py`) computes log-probabilities, the stage the loss, and the trainer does the rest: backward pass, clipping,
update, log (`logging/`) and checkpoint (`checkpoints.py`). Several processes share the work as described in
`distributed/`.
"""
