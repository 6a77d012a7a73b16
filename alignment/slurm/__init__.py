"""Slurm: the script of a job, the few commands that are called, and what they say of a job."""
