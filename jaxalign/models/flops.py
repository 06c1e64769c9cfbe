"""Model FLOPs: the floating-point operations that passes over rows of tokens need, each counted once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxalign.models.config import ModelConfig
from jaxalign.models.lora import LoraConfig, targets_of
from jaxalign.models.mixture import EXPERTS
from jaxalign.models.transformer import parameter_shapes

Learns = Literal["all", "adapter", "nothing"]
# Passes as costly as the forward one: the backward pass has two products for each of the forward's, for the gradient
# of the weights and of their input; a frozen weight has only the latter.
PASSES: dict[Learns, int] = {"all": 3, "adapter": 2, "nothing": 1}


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One model's pass over the rows of a batch.

    With N weights in the matrices of the layers and V * D in the head, a row of T tokens, of which the loss reads C,
    takes

        p * 2 * (N * T + V * D * C)  +  q * 4 * L * heads * head_dim * pairs  +  3 * 2 * adapter * T

    where p is 3 if all is trained (6 operations a weight and token), 2 if an adapter on frozen weights is, and 1 where
    nothing is; q, of attention's two products, which have no weights, is 3 with a gradient, else 1; and pairs, the
    tokens that tokens attend to, are T * (T + 1) / 2, or less with a sliding window.

    Norms, activations, the optimizer and what is computed twice (`remat`, micro-batches' statistics) are not counted,
    nor are heads of reward and value models.

    Source: arXiv:2204.02311 (PaLM), appendix B, whose 6 N + 12 L H Q T a token (also in arXiv:2104.04473, Megatron-LM)
    counts pairs as T^2 and the head at every token. Of causal attention half of that is needed, and the head only
    where the loss reads: so the MFU here is the lower of the two.

    Attributes:
      config: the model.
      learns: what of it has a gradient.
      adapter: weights of its adapter, which are trained.
      head: whether its vocabulary head is applied.
      prefix: of the columns of a batch that it reads.
    """

    config: ModelConfig
    learns: Learns = "all"
    adapter: int = 0
    head: bool = True
    prefix: str = ""

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Of one pass over a batch.

        Args:
          batch: columns with tokens of each row `lengths`, int [*N], and the tokens that the loss reads, `mask`, bool
            [*N, T]; 0 where it has none. With `filler_tokens` the share of such rows is left out.
        """
        if self.prefix + "lengths" not in batch:
            return 0.0
        lengths = np.asarray(batch[self.prefix + "lengths"])
        real = 1 - batch.get("filler_tokens", 0) / max(int(np.asarray(batch["lengths"]).sum()), 1)
        return real * self.of_rows(lengths, float(np.asarray(batch[self.prefix + "mask"]).sum()))

    def of_rows(self, lengths: Any, counted: float) -> float:
        """Of one pass over rows of these lengths, with `counted` tokens in all that the loss reads."""
        lengths, config = np.asarray(lengths, np.float64), self.config
        head = config.vocab_size * config.hidden_size * counted if self.head else 0.0
        products = 2 * (layer_weights(config) * lengths.sum() + head)
        pairs = sum(_pairs(lengths, config.sliding_window if s else 0).sum() for s in config.layer_slides)
        attention = 4 * config.num_heads * config.head_dim * pairs
        return float(
            PASSES[self.learns] * products
            + (1 if self.learns == "nothing" else 3) * attention
            + 6 * self.adapter * lengths.sum()
        )


def training_pass(config: ModelConfig, lora: LoraConfig | None, *, head: bool = True) -> Pass:
    """The pass of a model that learns, or whose adapter does."""
    if lora is None or not lora.enabled:
        return Pass(config=config, head=head)
    shapes = parameter_shapes(config)["layers"]
    adapter = sum(shapes[name][0] * lora.rank * sum(shapes[name][1:]) for name in targets_of(config, lora))
    return Pass(config=config, learns="adapter", adapter=adapter, head=head)


def layer_weights(config: ModelConfig) -> int:
    """Weights of all layers' matrices that are multiplied with once a token; of experts, those that it uses."""
    layers = parameter_shapes(config)["layers"]
    mixture = config.mixture
    experts = sum(math.prod(layers[name]) for name in EXPERTS) if mixture.experts else 0
    matrices = (*(name for name in layers if name.endswith("_proj")), *(("router",) if experts else ()))
    own = sum(math.prod(layers[name]) for name in matrices)
    return own + (experts * mixture.per_token // mixture.experts if experts else 0)


def _pairs(lengths: np.ndarray, window: int) -> np.ndarray:
    """Tokens that the tokens of each row attend to, its own included; 0 is no window."""
    near = np.minimum(lengths, window) if window else lengths
    return near * (near + 1) / 2 + (lengths - near) * near
