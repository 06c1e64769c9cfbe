"""Truncated sampling (top-k, top-p, min-p): completions come from another distribution than the one that is scored."""

from typing import Any

import numpy as np

from jaxalign.rollout import Completions, SamplingConfig


def truncation_of(sampling: SamplingConfig) -> str:
    """The settings that cut the distribution, as `sampling.top_p=0.9`; empty for none."""
    names = {"top_k": sampling.top_k > 0, "top_p": sampling.top_p < 1, "min_p": sampling.min_p > 0}
    return ", ".join(f"sampling.{name}={getattr(sampling, name):g}" for name, cut in names.items() if cut)


def truncation_warning(config: Any) -> str:
    """What truncated sampling does to a run of this configuration, in one line; empty where there is none."""
    cut = truncation_of(config.sampling)
    if not cut:
        return ""
    begin = f"{cut}: completions are drawn from a truncated distribution, and log-probs are those of the whole one; "
    cap = getattr(config, "importance_cap", None)
    if cap is None:
        return f"{begin}the update is biased, and nothing here corrects for it"
    if not cap:
        return f"{begin}the update is biased (loss.importance_cap=2 corrects for it, up to the cap)"
    return f"{begin}loss.importance_cap = {cap:g} corrects for it, up to the cap"


def truncated_mass(completions: Completions) -> float:
    """Mean probability that truncation took from the distributions that tokens were drawn from, in [0, 1]."""
    left = np.exp(np.minimum(completions.logps - completions.sampling_logps, 0.0))
    return float(1 - left[completions.mask].mean())
