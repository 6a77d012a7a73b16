"""Devices, precision and processes: nothing above this room knows of them."""
