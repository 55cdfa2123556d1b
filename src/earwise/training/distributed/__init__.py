"""Training in several processes: collectives and sharded layers."""
