"""`alignment check`: whether a run is sound, measured on its own model, data and config before anything is spent."""
