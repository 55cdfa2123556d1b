"""The option that lies nearest to an output, by vectors of a model of text embeddings."""

from collections.abc import Sequence

import numpy as np

from earwise.engine.embeddings.embedders import Embedder


def nearest_options(embedder: Embedder, outputs: Sequence[str], options: Sequence[Sequence[str]]) -> list[int]:
    """The option of each output whose vector has the largest cosine with that of the output; the first of several.

    Args:
        embedder: The model.
        outputs: The outputs.
        options: The options of each output, at least one.
    Raises:
        EngineError: if the model does not answer.
    """
    texts = list(dict.fromkeys([*outputs, *(option for item in options for option in item)]))
    if not texts:
        return []
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return [
        int(np.argmax([vectors[output] @ vectors[option] for option in item]))
        for output, item in zip(outputs, options, strict=True)
    ]
