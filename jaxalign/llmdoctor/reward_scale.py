"""eta, by which TFPO multiplies token rewards: read off the gradients of the first batches.

Balance is quadratic in its residuals. These are affine in eta, and by what the policy changes in them (log pi, log V)
eta is not multiplied. So the policy's gradient is affine in eta, exactly, with any preset, window or decay:

    gradient(eta) = G0 + eta * G1

Labels enter G1 alone; G0 pulls towards the target without rewards, and as a rule against G1. With a ratio
|G0| / (eta * |G1|) of 1/4 the step is less than asin(1/4) = 14.5 degrees away from the labels' (a cosine of 0.968 or
more), wherever G0 points; with a ratio of 1 it may point anywhere up to 90 degrees. More is not better: rewards that
no policy can balance push all pairs alike, those too that are in order.

Where the target holds the reference that the doctor begins as (kappa = 1), G0 is 0 at the start, and eta says only how
far the target lies: the log-odds of preferred and rejected response in it, against the reference's, are eta times the
gap of their summed rewards. `GAP` is 10 nats of it, where DPO with its usual beta of 0.1 has a margin of 1. (On two
tasks doctors of 4 to 12 nats learned as much, and of 36 less; those of 12 steered better than those of 4 on the one
where that was tried: experiments/LOG.md, 2026-11-23.) So

    eta = max(|G0| / (RATIO * |G1|), GAP / mean gap of summed rewards)
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.tfpo_step import TFPOBatch
from jaxalign.runs import Run
from jaxalign.training.core.step import Batch, CountFunction, LossFunction, accumulated

RATIO, GAP = 0.25, 10.0
# Batches that are read.
BATCHES = 8
# A fixed eta whose step has a smaller cosine to the labels' is warned of.
BURIED = 0.7


@dataclass(frozen=True, kw_only=True)
class RewardGradients:
    """The two parts of the policy's gradient, means over batches.

    Attributes:
      base_norm: |G0|.
      label_norm: |G1|.
      product: the scalar product of G0 and G1.
      gap: the mean over pairs of |summed rewards of chosen - of rejected|, at eta = 1.
    """

    base_norm: float
    label_norm: float
    product: float
    gap: float

    @property
    def usable(self) -> bool:
        """Whether an eta can be read off them."""
        return self.label_norm > 0 and self.gap > 0 and math.isfinite(self.base_norm + self.label_norm)

    def scale(self) -> float:
        """eta by the rule above.

        Raises:
          ConfigError: no finite eta would do.
        """
        if not self.usable:
            raise ConfigError(
                "loss.reward_scale=auto cannot be measured: the rewards of the first batches have no gradient "
                f"(norm {self.label_norm:g}, without rewards {self.base_norm:g}); set loss.reward_scale to a number"
            )
        return max(self.base_norm / (RATIO * self.label_norm), GAP / self.gap)

    def ratio(self, scale: float) -> float:
        """|G0| / (eta * |G1|)."""
        labels = scale * self.label_norm
        return self.base_norm / labels if labels else math.inf

    def cosine(self, scale: float) -> float:
        """The cosine of the whole gradient to G1; 0 where either is 0."""
        square = self.base_norm**2 + 2 * scale * self.product + (scale * self.label_norm) ** 2
        whole = math.sqrt(max(square, 0.0)) * self.label_norm
        return (self.product + scale * self.label_norm**2) / whole if whole else 0.0


def make_reward_gradients(
    loss_at: Callable[[Any], LossFunction], count_function: CountFunction, *, accumulation_steps: int = 1
) -> Callable[[Mapping[str, Any], Any, Iterable[Batch]], RewardGradients]:
    """Builds `measure(params, frozen, batches)`, which measures G0 and G1: two backward passes a batch, by one program.

    The parameters are {"policy", ...}, and the gradient is the policy's; `frozen` is as for the loss, and batches, at
    least one, are as an update gets them.

    Args:
      loss_at: eta -> the loss function of `make_update`.
      count_function: as for `make_update`.
      accumulation_steps: micro-batches that each batch is split into.
    """

    @jax.jit
    def gradient(params, frozen, batch, eta):
        def loss(policy, frozen, batch, key, counts):
            return loss_at(eta)({**params, "policy": policy}, frozen, batch, key, counts)

        whole = accumulated(jax.value_and_grad(loss, has_aux=True), accumulation_steps)
        counts = count_function(batch)
        grads = whole(params["policy"], frozen, batch, jax.random.key(0), counts)[1]
        return jax.tree.map(lambda x: x.astype(jnp.float32), grads)

    @jax.jit
    def gaps(batch: TFPOBatch):
        sums = batch.rewards.sum(2) * batch.valid[:, None]
        return jnp.sum(jnp.abs(sums[:, 0] - sums[:, 1])), jnp.sum(batch.valid)

    add = jax.jit(lambda total, part: jax.tree.map(jnp.add, total, part), donate_argnums=0)

    @jax.jit
    def facts(at_zero, at_one):
        labels = jax.tree.map(jnp.subtract, at_one, at_zero)
        product = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (at_zero, labels)), strict=True))
        return optax.global_norm(at_zero), optax.global_norm(labels), product

    def measure(params: Mapping[str, Any], frozen: Any, batches: Iterable[Batch]) -> RewardGradients:
        totals: list[Any] = [None, None]
        gap, pairs, number = 0.0, 0, 0
        for batch in batches:
            for index in (0, 1):
                part = gradient(params, frozen, batch, jnp.float32(index))
                totals[index] = part if totals[index] is None else add(totals[index], part)
            found, valid = gaps(batch)
            gap, pairs, number = gap + float(found), pairs + int(valid), number + 1
        base, labels, product = (float(x) for x in facts(*totals))
        return RewardGradients(
            base_norm=base / number,
            label_norm=labels / number,
            product=product / number**2,
            gap=gap / max(pairs, 1),
        )

    return measure


def reward_scale(run: Run, asked: float | str, measure: Callable[[], RewardGradients]) -> float:
    """The run's eta: of an earlier start of the run, else what was asked for, or (auto) what `measure` says.

    Told at the start and written down in metadata.json; a fixed one that buries the labels is warned of.

    Raises:
      ConfigError: see `RewardGradients.scale`.
    """
    noted = run.metadata().get("reward_scale")
    if noted is not None:
        return float(noted["value"])
    found = measure()
    value = found.scale() if isinstance(asked, str) else asked
    cosine, ratio = found.cosine(value), found.ratio(value)
    run.add_metadata(
        reward_scale={
            "value": value,
            "asked": asked,
            "auto": found.scale() if found.usable else None,
            "cosine_to_labels": cosine,
            "base_to_labels": ratio,
            "target_gap": value * found.gap,
            "base_norm": found.base_norm,
            "label_norm": found.label_norm,
        }
    )
    run.tell(
        "reward scale",
        f"{value:.4g}{' (auto)' if isinstance(asked, str) else ''}: the rewards of the two completions differ by "
        f"{value * found.gap:.3g} nats; cosine of the step to the labels' gradient: {cosine:.2f}",
    )
    if found.usable and cosine < BURIED:
        run.warn(
            f"loss.reward_scale={value:g} buries the labels: the gradient without rewards is {ratio:.2g} times that of "
            f"the rewards, and the step's cosine to it is {cosine:.2f}; auto would be {found.scale():.3g}"
        )
    return value
