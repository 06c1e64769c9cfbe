"""Teacher-forced log-probs and values of rows of tokens: what every trainer computes.

Column t of a result belongs to token t: the hidden state before it, at t - 1, gives
its log-prob and the value of the state it was sampled from. Column 0 is never counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import ConfigError
from jaxalign.logprobs import linear_logprobs
from jaxalign.mesh import constrained, length_shards
from jaxalign.models import LoraConfig, attach, merge
from jaxalign.models.exact import with_value
from jaxalign.models.flops import Pass, training_pass
from jaxalign.models.layers import RESIDUAL
from jaxalign.target import memory_of, target_device
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.core.packing import Packing, spread, taken
from jaxalign.training.core.step import ROUTER_LOSS, ROUTER_PENALTY

# Bytes of logits that are not split into chunks: XLA keeps them for the backward pass, where chunks are computed again.
WHOLE_LOGITS = 512 << 20
# Of a GPU's memory, where that is more.
WHOLE_SHARE = 1 / 16


@dataclass(frozen=True)
class CausalPolicy:
    """How to score with a causal language model whose parameters may be split in two.

    With LoRA the trained leaves are the adapter and the frozen leaves are the base;
    without it all leaves are trained and nothing is frozen.

    Attributes:
      definition: the static part of the model, from `models.split`.
      lora: the adapter's settings where the trained leaves are an adapter; else None.
    """

    definition: Any
    lora: LoraConfig | None = None

    def parts(self, trained: Any, frozen: Any) -> tuple[Any, Any]:
        """The model and its adapter (or None)."""
        if self.lora is not None:
            return merge(self.definition, frozen), attach(trained, self.lora)
        return merge(self.definition, trained), None

    @property
    def training_pass(self) -> Pass:
        """The pass of an optimizer step over its batch."""
        return training_pass(self.definition.config, self.lora)

    def score(
        self,
        trained: Any,
        frozen: Any,
        rows: TokenRows,
        *,
        temperature: float | jax.Array = 1.0,
        key: jax.Array | None = None,
    ) -> "TokenScores":
        """Log-probs of the counted tokens under the model (with its adapter)."""
        model, adapter = self.parts(trained, frozen)
        return score_tokens(
            model, rows, adapter=adapter, temperature=temperature, dropout_key=key, whole_logits=True
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenScores:
    """Per-token statistics [B, T], float32, 0 outside the mask; `hidden` is [B, T, D].

    `router_loss` is a mixture of experts' load-balancing loss, what of it is added to the trainer's loss (None:
    nothing) and the number of tokens that it is of; None in other models.
    """

    logps: jax.Array
    entropy: jax.Array
    is_top1: jax.Array
    logsumexp: jax.Array
    mean_logps: jax.Array
    sum_squared_probs: jax.Array
    hidden: jax.Array
    router_loss: tuple[jax.Array, jax.Array | None, jax.Array] | None = None

    @property
    def router_metrics(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Metrics of a loss function by which `step.make_update` also learns the router's balance."""
        if self.router_loss is None:
            return {}
        value, penalty, count = self.router_loss
        metrics = {ROUTER_LOSS: (value * count, count)}
        return metrics if penalty is None else metrics | {ROUTER_PENALTY: (penalty * count, count)}


def whole_logits_limit() -> int:
    """Bytes of logits that a pass with a gradient may keep here: `WHOLE_LOGITS`, or a share of a GPU's memory."""
    device = target_device()
    memory = memory_of(device) if device.platform == "gpu" else 0
    return max(WHOLE_LOGITS, int(WHOLE_SHARE * memory))


def score_tokens(
    model: Any,
    rows: TokenRows,
    *,
    adapter: Any = None,
    temperature: float | jax.Array = 1.0,
    dropout_key: jax.Array | None = None,
    whole_logits: bool = False,
) -> TokenScores:
    """Scores right-padded rows in any layout, with the same result.

    Args:
      model: a `Transformer`.
      rows: token ids [B, T], their lengths and mask. With a layout (`rows.packing`), padding of packed rows and, in
        the head, tokens outside the mask cost nothing; the mask must lie within the one that it was made for.
      adapter: LoRA adapter, or None.
      temperature: the sampling temperature; logits are divided by it.
      dropout_key: for LoRA dropout; None turns it off.
      whole_logits: for passes with a gradient: where the model rematerializes nothing, logits of up to
        `whole_logits_limit()` bytes (float32, of all devices together) are not split into chunks.
    """
    options: dict[str, Any] = {"adapter": adapter}
    if dropout_key is not None:
        options["dropout_key"] = dropout_key
    head = {"embedding": model.head, "temperature": temperature, **model.head_options}
    layout = rows.packing or Packing()
    inputs, router_loss = layout.rows(rows.tokens, rows.lengths), None
    if model.config.mixture.experts:
        states, (value, count) = model.hidden_and_balance(**inputs, **options)
        factor = model.config.mixture.balance
        router_loss = value, factor * value if factor else None, count
    else:
        states = model.hidden(**inputs, **options)
    before, targets, counted, restored = predictions(states, rows, model.config.mesh)
    vocabulary = model.head.shape[0]
    if (
        whole_logits
        and model.config.remat == "none"
        and 4 * targets.size * vocabulary <= whole_logits_limit()
    ):
        head["chunk_size"] = vocabulary
    stats = linear_logprobs(before, targets=targets, mask=counted, **head)
    if model.config.exact:
        logps = model.exact_logps(before, targets, temperature)
        stats = stats._replace(logps=with_value(stats.logps, jnp.where(counted, logps, 0.0)))
    stats = jax.tree.map(restored, stats)
    return TokenScores(
        logps=stats.logps,
        entropy=stats.entropy,
        is_top1=stats.is_top1.astype(jnp.float32),
        logsumexp=stats.logsumexp,
        mean_logps=stats.mean_logps,
        sum_squared_probs=stats.sum_squared_probs,
        hidden=layout.back(states, rows.tokens.shape),
        router_loss=router_loss,
    )


class Predictions(NamedTuple):
    """What predicts the tokens of rows, in the layout of a model (B and T may differ from the rows').

    Attributes:
      before: hidden states before the tokens.
      targets: the tokens.
      counted: those that the loss reads.
      restored: numbers of these tokens -> [B, T] of the rows, 0 where nothing is predicted.
    """

    before: Float[Array, "B T D"]
    targets: Int[Array, "B T"]
    counted: Bool[Array, "B T"]
    restored: Callable[[jax.Array], jax.Array]


def predictions(states: Float[Array, "B T D"], rows: TokenRows, mesh: Mesh | None) -> Predictions:
    """The hidden states before each token of the rows; with a layout, before those alone that its head is read at.

    Args:
      states: a model's, of the rows in their layout.
      rows: the rows.
      mesh: the model's.
    """
    tokens, mask, split = rows.tokens, rows.mask, length_shards(mesh) > 1
    restored: Callable[[Any], Any]
    if rows.packing is not None:
        places = rows.packing.targets(tokens.shape)
        before = rows.packing.gather(states)
        targets, counted = taken(tokens, places), taken(mask, places)
        restored = partial(spread, places=places, shape=tokens.shape)
    elif split:  # where devices share the columns of a row, each must keep as many
        before, targets, restored = states, jnp.roll(tokens, -1, axis=1), partial(jnp.roll, shift=1, axis=1)
        counted = jnp.roll(jnp.asarray(mask).at[:, 0].set(False), -1, axis=1)
    else:
        before, targets, counted = states[:, :-1], tokens[:, 1:], mask[:, 1:]
        restored = partial(jnp.pad, pad_width=((0, 0), (1, 0)))
    if split:
        before = constrained(before, RESIDUAL, mesh)
    return Predictions(before, targets, counted, restored)


def values_before(per_token: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Scores after each token -> value before each counted token (0 outside the mask)."""
    shifted = jnp.pad(per_token[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(mask, shifted, 0.0)


@dataclass(frozen=True)
class ScalarPolicy:
    """How to score with a scalar model (reward or value) whose parameters may be split in two.

    The trained leaves are `{"trunk", "head"}`, or `{"adapter", "head"}` on a frozen trunk
    with LoRA. The normalizer (gain and bias) is always frozen.

    Attributes:
      definition: the static part of the model, from `models.split`.
      lora: the adapter's settings where the trunk is frozen under one; else None.

    Raises:
      ConfigError: a mixture of experts with a load-balancing loss, which is not added to the losses of scalar models.
    """

    definition: Any
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.definition.config.mixture.balance:
            raise ConfigError(
                "a reward model or critic that is a mixture of experts learns without its load-balancing loss; set "
                "model.router_loss=0 (or router_aux_loss_coef to 0 in its config.json) to train it so"
            )

    def parts(self, trained: Any, frozen: Any) -> tuple[Any, Any]:
        """The scalar model and its adapter (or None)."""
        params = {**frozen, **{k: v for k, v in trained.items() if k != "adapter"}}
        adapter = None if self.lora is None else attach(trained["adapter"], self.lora)
        return merge(self.definition, params), adapter

    @property
    def training_pass(self) -> Pass:
        """The pass of an optimizer step over its batch."""
        return training_pass(self.definition.config, self.lora, head=False)

    def per_token(
        self,
        trained: Any,
        frozen: Any,
        rows: TokenRows,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T"]:
        """The score after each token; the rows may be packed, with the same result."""
        model, adapter = self.parts(trained, frozen)
        layout = rows.packing or Packing()
        scores = model.per_token(**layout.rows(rows.tokens, rows.lengths), adapter=adapter, dropout_key=key)
        return layout.back(scores, rows.tokens.shape)

    def last(
        self,
        trained: Any,
        frozen: Any,
        rows: TokenRows,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, " B"]:
        """The score at each row's last valid token."""
        scores = self.per_token(trained, frozen, rows, key=key)
        return jnp.take_along_axis(scores, jnp.maximum(rows.lengths - 1, 0)[:, None], axis=1)[:, 0]
