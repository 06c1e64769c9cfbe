"""The trainers' fixtures."""

from tests.training.conftest import *  # noqa: F403
