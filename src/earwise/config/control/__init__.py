"""What steers a stage beside its updates: length, checkpoints, evaluations, what ends it early."""
