"""The Hugging Face Hub: which commit a name stands for, and its files in the cache of this machine."""
