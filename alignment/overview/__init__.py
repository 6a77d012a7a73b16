"""What a user asks of runs in their folders: how far they are, and what they found side by side. Text alone."""
