"""Transformers models, the branch mask that packed rows need, and the three read-outs."""
