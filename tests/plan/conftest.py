"""Short runs to compare plans with."""

from tests.training.conftest import configs, pairs_file, steps_file

__all__ = ["configs", "pairs_file", "steps_file"]
