"""The command `alignment`, and the only door to Hydra."""
