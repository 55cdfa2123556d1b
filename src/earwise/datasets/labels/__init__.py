"""Questions from a labelled collection of clips."""
