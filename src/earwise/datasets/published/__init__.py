"""Published data sets converted to manifests: missing audio, unsuitable questions, choices for open questions."""
