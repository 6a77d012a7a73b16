"""Every dataclass that Hydra fills: one root per task, defaults here and nowhere else."""
