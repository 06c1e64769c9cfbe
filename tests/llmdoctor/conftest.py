"""Fixtures of data and of trainers."""

from tests.data.conftest import *  # noqa: F403
from tests.training.conftest import *  # noqa: F403
