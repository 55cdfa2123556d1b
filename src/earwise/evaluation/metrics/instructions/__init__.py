"""Instructions about the form of an answer that a program can check: those of MMAU-Pro and of IFEval."""
