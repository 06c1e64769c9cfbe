"""Losses of demonstrations: cross-entropy, its relatives, and distillation."""

from tests.losses.cases.case import Case

CASES: list[Case] = []
