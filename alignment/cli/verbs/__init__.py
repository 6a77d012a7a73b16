"""The verbs of the command, a module each: `PAGE` is what `alignment VERB --help` shows, and `main` does it.

A verb's module imports Hydra and torch where it needs them, not above: its page and its mistakes need neither.
"""
