"""`alignment.run`: what the command `run` does, from Python, with rows that are in memory too."""
