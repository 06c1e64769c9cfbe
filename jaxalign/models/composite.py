"""Models that are made of several and decoded as one: a base model, and others that change what it says next."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Generic, TypeVar

from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import ScalarDefinition, ScalarModel
from jaxalign.models.transformer import Definition, Transformer


class CompositeDefinition:
    """The static part of a `Composite`: hashable, of equal ones equal (a frozen dataclass)."""

    @cached_property
    def config(self) -> ModelConfig:
        """The shape that a sampler is to reckon with: what the models have in common."""
        raise NotImplementedError

    def merge(self, params: dict[str, Any]) -> "Composite":
        """The model with these parameters; see `models.merge`."""
        raise NotImplementedError

    def with_stops(self, ids: Iterable[int]) -> "CompositeDefinition":
        """The same models, ending completions at these tokens too; see `models.with_stops`."""
        raise NotImplementedError


D = TypeVar("D", bound=CompositeDefinition)


class Composite(Generic[D]):
    """What `models.split` takes apart: a static definition and a tree of arrays.

    Attributes:
      definition: the static part.
      params: the arrays.
    """

    def __init__(self, definition: D, params: dict[str, Any]) -> None:
        self.definition = definition
        self.params = params

    @property
    def config(self) -> ModelConfig:
        """Its definition's."""
        return self.definition.config


# What gives logits; and whatever `models.split` takes apart, and into what.
CausalModel = Transformer | Composite[Any]
Model = CausalModel | ScalarModel
ModelDefinition = Definition | ScalarDefinition | CompositeDefinition
