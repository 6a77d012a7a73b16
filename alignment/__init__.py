"""Preference alignment that people trust: reward models with margins, PPO, DPO, ORPO and what surrounds them."""
