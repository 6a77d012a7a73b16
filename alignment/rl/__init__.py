"""Learning from the policy's own replies: PPO and what shares its experience."""
