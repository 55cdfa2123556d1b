"""Shared parts of the benchmarks: timing, workloads, models, and the implementations that earwise is compared with."""
