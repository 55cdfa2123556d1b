"""Scoring by a judge: a language model that reads question, reference and answer, and writes a verdict.

A task says what the judge is asked and how its reply is read (`judging.py`); the models that can be one are in
`models.py`; `panel.py` asks them, keeps every judgement in a file that only grows, and scores the rows.
"""
