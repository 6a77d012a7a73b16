"""Replies: sampled, scored, made into experience, or selected."""
