"""One file for each supported model family."""
