"""What a run writes down while it goes on: metrics, samples, trackers and skipped rows."""
