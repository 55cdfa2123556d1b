"""From requests to answers: the queue, batches that take turns, growing text, and the exchange of weights."""
