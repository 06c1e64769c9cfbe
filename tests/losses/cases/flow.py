"""Token rewards and flow-based losses."""

from tests.losses.cases.case import Case

CASES: list[Case] = []
