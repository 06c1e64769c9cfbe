"""An open run: where every training call finds its models."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.runs import Run
from jaxalign.training.core import setup
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.core.stops import with_stops


@dataclass(frozen=True)
class OpenRun:
    """A run whose folder is open and whose devices are chosen.

    Attributes:
      config: the run's, with the sections `run`, `model`, `data`, `train`.
      run: its folder.
      mesh: the devices.
      key: source of all randomness; `fold` gives each purpose its own.
    """

    config: Any
    run: Run
    mesh: Mesh
    key: jax.Array

    def fold(self, number: int) -> jax.Array:
        """A key of its own."""
        return jax.random.fold_in(self.key, number)

    def load_model(self, live: Any, tokenizer: Any, *, mapped: bool = False) -> tuple[Any, Any]:
        """The live model and its tokenizer, else those of `config.model`; `mapped`: several run as one.

        Under an adapter with `lora.base_weights` its weights are quantized.
        """
        config = self.config
        weights = config.lora.weights
        if live is not None:
            return models.quantize(self.placed(live), weights), tokenizer
        return setup.load_model(
            config.model,
            self.mesh,
            seed=config.run.seed,
            run=self.run,
            packing=config.train.packing,
            mapped=mapped,
            weights=weights,
        )

    def placed(self, live: Any, section: str = "model") -> Any:
        """The live model, on the run's mesh if that has several devices; `section` is what it stands in for."""
        return setup.placed(live, self.mesh, run=self.run, section=section)

    def load_reference(self, policy: Any, *, read: bool = True) -> Any:
        """See `setup.load_reference`."""
        return setup.load_reference(self.config, policy, self.mesh, self.run, read=read)

    def trained_parts(self, policy: Any) -> tuple[CausalPolicy, Any, Any]:
        """How to score with the policy, its trained leaves, and its frozen leaves; see `setup.policy_of`."""
        return setup.policy_of(policy, self.config.lora, self.mesh, key=self.fold(1))

    def load_policy(self, live: Any, tokenizer: Any) -> tuple[Any, Any]:
        """As `load_model`; it stops where the data teach it to."""
        model, tokenizer = self.load_model(live, tokenizer)
        return with_stops(model, self.config.data, tokenizer), tokenizer
