"""Replies to prompts: sampled, scored, counted and selected."""
