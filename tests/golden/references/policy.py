"""Policy-gradient losses, advantages, KL estimators and reductions."""

REFERENCES = {}
