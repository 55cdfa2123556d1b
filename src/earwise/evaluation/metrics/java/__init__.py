"""METEOR and SPICE, whose programs are written in Java and come from elsewhere."""
