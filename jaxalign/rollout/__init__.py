"""Sampling completions from a model."""

from jaxalign.rollout.config import SamplingConfig
from jaxalign.rollout.generate import Completions, Sampler, generate
from jaxalign.rollout.trajectory import Rows, join_rows

__all__ = ["Completions", "Rows", "Sampler", "SamplingConfig", "generate", "join_rows"]
