"""Settings of kinds of stages that have a file of their own; those of the other kinds are in `config/stages.py`."""
