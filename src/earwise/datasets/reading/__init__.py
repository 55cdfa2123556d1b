"""Questions without sound, from WordNet, that teach a model to find its options in words that it is given."""
