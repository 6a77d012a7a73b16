"""Preference alignment that people trust: reward models with margins, PPO, DPO and its kin, and what surrounds them."""
