"""Exports of a run's checkpoints, as the Hugging Face folders that the end of the run would have written."""
