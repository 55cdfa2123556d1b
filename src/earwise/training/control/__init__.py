"""What steers a stage beside its updates: evaluations, the best checkpoint, bad steps, overlapping rows, memory."""
