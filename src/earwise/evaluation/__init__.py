"""Evaluation: a task put to an engine, scored, summarised and compared, with blind controls; see `evaluation.run`."""
