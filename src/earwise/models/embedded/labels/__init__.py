"""The connector `labels` of the embedded model: what it shows to the decoder, and how it is fitted."""
