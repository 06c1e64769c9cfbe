"""Auxiliary losses."""

from tests.losses.cases.case import Case

CASES: list[Case] = []
