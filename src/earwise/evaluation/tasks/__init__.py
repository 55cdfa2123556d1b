"""The benchmarks, one file each; every file defines a `TASK`. The table and the class are in `evaluation.task`."""
