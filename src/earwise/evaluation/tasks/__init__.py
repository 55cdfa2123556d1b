"""The benchmarks, one file each; every file defines a `TASK`.

The class is in `evaluation.task`, the table in `evaluation.task_table`.
"""
