"""One training step and one loop for every method; checkpoints and the log around them."""
