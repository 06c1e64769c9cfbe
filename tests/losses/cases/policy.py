"""Policy-gradient losses, advantages, KL estimators and reductions."""

from tests.losses.cases.case import Case

CASES: list[Case] = []
