"""Sampling completions from a model, in this process or on a server."""

from jaxalign.rollout.config import SamplingArguments, SamplingConfig
from jaxalign.rollout.engine import Engine, EngineConfig
from jaxalign.rollout.generate import Completions, Sampler, generate
from jaxalign.rollout.server import ServerEngine
from jaxalign.rollout.trajectory import Rows, join_rows

__all__ = [
    "Completions",
    "Engine",
    "EngineConfig",
    "Rows",
    "Sampler",
    "SamplingArguments",
    "SamplingConfig",
    "ServerEngine",
    "generate",
    "join_rows",
]
