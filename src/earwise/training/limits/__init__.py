"""How far a step is from what the processor can do: which operators ran, and the least time that they could take."""
