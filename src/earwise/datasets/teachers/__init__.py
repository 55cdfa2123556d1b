"""Text written by a teacher model, logged so that nothing is paid for twice."""
