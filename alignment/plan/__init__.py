"""Whether a run fits, and on how many GPUs: what it takes of their memory, counted before any weight is read."""
