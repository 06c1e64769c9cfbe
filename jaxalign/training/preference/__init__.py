"""Preference training: DPO and its family, from comparisons or labels, without a reward model."""
