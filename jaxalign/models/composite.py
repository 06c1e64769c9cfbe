"""Models that are made of several and decoded as one: a patient with doctors, a patient with a reward model."""

from typing import Any

from jaxalign.models.config import ModelConfig


class Composite:
    """What `models.split` takes apart: a static definition, which has `config` and `merge`, and a tree of arrays.

    Attributes:
      definition: the static part.
      params: the arrays.
    """

    def __init__(self, definition: Any, params: dict[str, Any]) -> None:
        self.definition = definition
        self.params = params

    @property
    def config(self) -> ModelConfig:
        """The shape that a sampler is to reckon with: what the models have in common."""
        return self.definition.config
