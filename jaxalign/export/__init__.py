"""Exports a run's checkpoints as the Hugging Face folders that the run would have written at its end."""
