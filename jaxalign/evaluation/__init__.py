"""Measures of trained models, one per file, and their uncertainty."""

from jaxalign.evaluation.perplexity import Perplexity, perplexity
from jaxalign.evaluation.winrate import WinRate, win_rate
from jaxalign.uncertainty import (
    Estimate,
    bootstrap_interval,
    clustered_interval,
    estimate_mean,
    wilson_interval,
)

__all__ = [
    "Estimate",
    "Perplexity",
    "WinRate",
    "bootstrap_interval",
    "clustered_interval",
    "estimate_mean",
    "perplexity",
    "wilson_interval",
    "win_rate",
]
