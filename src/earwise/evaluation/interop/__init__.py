"""Tasks of earwise inside other evaluation programs."""
