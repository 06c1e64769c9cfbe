"""Losses of reward models."""

from tests.losses.cases.case import Case

CASES: list[Case] = []
