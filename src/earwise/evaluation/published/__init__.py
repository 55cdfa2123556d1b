"""What the published files of benchmarks have in common: items in, submission files out."""
