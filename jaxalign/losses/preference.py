"""The table of preference losses: inputs and options of each.

`DPOLossConfig` (the keys `loss.*` of `jaxalign dpo`), its help, docs/losses.md and the tests are made from
`PREFERENCE_LOSSES`. A new loss is its own file, one record here and one parity case; `jaxalign.losses` exports every
function of the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign.losses.aot import aot_loss, aot_unpaired_loss, rank_matched
from jaxalign.losses.apo import apo_down_loss, apo_zero_loss, apo_zero_unpaired_loss
from jaxalign.losses.bco import bco_loss, bco_pair_loss
from jaxalign.losses.cpo import cpo_loss
from jaxalign.losses.discopop import discopop_loss
from jaxalign.losses.dpo import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.losses.exo import exo_loss
from jaxalign.losses.f_divergence import f_divergence_dpo_loss
from jaxalign.losses.kto import kto_kl, kto_loss
from jaxalign.losses.nca import nca_loss
from jaxalign.losses.orpo import orpo_loss
from jaxalign.losses.reductions import token_mean
from jaxalign.losses.simpo import alphapo_loss, simpo_loss
from jaxalign.losses.sppo import sppo_loss

# A filler row's place in a sorted batch: last, matched with other filler rows.
_LAST = 1e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoredRows:
    """Completions of a batch as the losses read them; [B, G], G completions of a prompt (chosen, rejected).

    Attributes:
      logps: float32 log-probs under the policy: sums (or means, or length-desensitized), nats.
      ref_logps: the same under the reference; zeros for a loss without one.
      desirable: bool, whether a completion is desirable.
      valid: bool [B], False in filler rows.
      kl_ratio: log-ratio of mismatched prompts and completions, for KTO; zeros elsewhere.
    """

    # Shapes stand in the docstring alone: transformations rebuild it with other axes.
    logps: jax.Array
    ref_logps: jax.Array
    desirable: jax.Array
    valid: jax.Array
    kl_ratio: jax.Array


# --- what couples the rows of a batch --------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """Whole-batch statistics that a loss receives as keyword arguments.

    Attributes:
      compute: (rows of the whole batch, beta) -> the arguments by name; no gradient flows.
      axes: the axes of each argument: ("B",), or () for a scalar.
      mismatched: it reads `ScoredRows.kl_ratio`, for which each prompt is also scored with another one's completion.
    """

    compute: Callable[[ScoredRows, float], dict[str, jax.Array]]
    axes: Mapping[str, tuple[str, ...]]
    mismatched: bool = False


def _every(rows: ScoredRows) -> jax.Array:
    return jnp.broadcast_to(rows.valid[:, None], rows.logps.shape)


def _kl(rows: ScoredRows, beta: float) -> dict[str, jax.Array]:
    del beta
    return {"kl": kto_kl(rows.kl_ratio.ravel(), jnp.zeros(rows.kl_ratio.size), _every(rows).ravel())}


def _delta(rows: ScoredRows, beta: float) -> dict[str, jax.Array]:
    # The mean reward. The paper keeps a running mean, which is this one of ever larger batches.
    return {"delta": beta * token_mean(rows.logps - rows.ref_logps, _every(rows))}


def _matched_margins(rows: ScoredRows, beta: float) -> dict[str, jax.Array]:
    del beta
    margins = (jnp.where(rows.valid, x[:, 0] - x[:, 1], _LAST) for x in (rows.logps, rows.ref_logps))
    return {"matched": rank_matched(*margins)}


def _matched_sides(rows: ScoredRows, beta: float) -> dict[str, jax.Array]:
    del beta
    ratio = jnp.where(rows.valid[:, None], rows.logps - rows.ref_logps, _LAST)
    chosen, rejected = ratio[:, 0], ratio[:, 1]
    return {
        "matched_rejected": rank_matched(chosen, rejected),
        "matched_chosen": rank_matched(rejected, chosen),
    }


KL = Statistic(_kl, {"kl": ()}, mismatched=True)
DELTA = Statistic(_delta, {"delta": ()})
MARGINS = Statistic(_matched_margins, {"matched": ("B",)})
SIDES = Statistic(_matched_sides, {"matched_rejected": ("B",), "matched_chosen": ("B",)})


# --- what is configured ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Option:
    """A hyper-parameter of some losses: a keyword of their functions, and the key `loss.NAME` of a configuration.

    Attributes:
      name: of both.
      default: the default value.
      meaning: for `--help`, which also lists the losses that have it.
      type: of the value.
      low, high: its range, ends included.
      open_low, open_high: the end is left out.
    """

    name: str
    default: Any
    meaning: str
    type: Any = float
    low: float = -float("inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    @property
    def range(self) -> str:
        """The range in words; "" where there is none."""
        if self.high < float("inf"):
            return f"lie in {'[('[self.open_low]}{self.low:g}, {self.high:g}{'])'[self.open_high]}"
        if self.low > -float("inf"):
            above = "be positive" if self.open_low else "not be negative"
            return above if self.low == 0 else f"be {'above' if self.open_low else 'at least'} {self.low:g}"
        return ""

    def check(self, value: Any) -> None:
        """Raises ValueError, naming the key, where a value is out of range."""
        if not self.range:
            return
        below = value <= self.low if self.open_low else value < self.low
        above = value >= self.high if self.open_high else value > self.high
        if below or above or value != value:
            raise ValueError(f"loss.{self.name} must {self.range}, got {value}")


@dataclass(frozen=True)
class LossSpec:
    """A preference loss: its function, inputs and options.

    The function's positional arguments follow from `reference`, `means` and `unpaired` (see `arguments`); by name it
    takes beta, its options and what its statistic computes. It returns one loss per row.

    Attributes:
      function: the loss.
      options: its options besides beta.
      reference: it reads the reference's log-probs.
      means: it reads mean log-probs per token rather than sums.
      unpaired: it reads single completions with labels.
      statistic: statistics of the whole batch that it receives; None if rows are independent.
      required: options that it cannot take at their defaults -> what they must be.
      sft_weight: weight of the chosen completion's negative log-likelihood that the method's paper adds.
    """

    function: Callable[..., jax.Array]
    options: tuple[Option, ...] = ()
    reference: bool = True
    means: bool = False
    unpaired: bool = False
    statistic: Statistic | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    sft_weight: float = 0.0

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the [B] arrays that the function is given by position."""
        if self.unpaired:
            return ("policy_logps", "ref_logps", "desirable")
        kind = "mean_logps" if self.means else "logps"
        models = ("policy", "ref") if self.reference else ("policy",)
        return tuple(f"{model}_{which}_{kind}" for model in models for which in ("chosen", "rejected"))

    def terms(
        self, function: Callable[..., jax.Array], rows: ScoredRows, named: Mapping[str, Any]
    ) -> jax.Array:
        """[B] losses of examples: `function`, called as this loss is, with these arguments by name.

        An unpaired loss of pairs is the mean over both completions.
        """
        policy, ref = rows.logps, rows.ref_logps
        if self.unpaired:
            flat = function(policy.ravel(), ref.ravel(), rows.desirable.ravel(), **named)
            return flat.reshape(policy.shape).mean(axis=1)
        two = (policy[:, 0], policy[:, 1])
        return function(*two, *((ref[:, 0], ref[:, 1]) if self.reference else ()), **named)


SMOOTHING = Option(
    name="label_smoothing",
    default=0.0,
    meaning="assumed probability that a label is flipped, in [0, 0.5)",
    low=0.0,
    high=0.5,
    open_high=True,
)
GAMMA = Option(name="gamma", default=0.5, meaning="target margin", low=0.0)
ALPHA = Option(
    name="alpha",
    default=0.5,
    meaning="shape of alphapo's reward (0 is simpo), or order of f_divergence's alpha divergence",
)
TAU = Option(
    name="tau", default=0.05, meaning="temperature of the blend of two losses", low=0.0, open_low=True
)
DIVERGENCE = Option(
    name="divergence",
    default="js",
    meaning="divergence that keeps the policy close to the reference",
    type=Literal["reverse_kl", "forward_kl", "js", "alpha"],
)
DESIRABLE = Option(name="desirable_weight", default=1.0, meaning="weight of desirable completions", low=0.0)
UNDESIRABLE = Option(
    name="undesirable_weight", default=1.0, meaning="weight of undesirable completions", low=0.0
)

PREFERENCE_LOSSES: Mapping[str, LossSpec] = {
    "dpo": LossSpec(dpo_loss, (SMOOTHING,)),
    "robust": LossSpec(robust_dpo_loss, (SMOOTHING,)),
    "ipo": LossSpec(ipo_loss),
    "hinge": LossSpec(hinge_loss),
    "exo": LossSpec(exo_loss, (SMOOTHING,), required={"label_smoothing": "above 0 (its paper has 0.001)"}),
    "nca": LossSpec(nca_loss),
    "bco_pair": LossSpec(bco_pair_loss, statistic=DELTA),
    "sppo": LossSpec(sppo_loss),
    "aot": LossSpec(aot_loss, (SMOOTHING,), statistic=MARGINS),
    "aot_unpaired": LossSpec(aot_unpaired_loss, (SMOOTHING,), statistic=SIDES),
    "apo_zero": LossSpec(apo_zero_loss),
    "apo_down": LossSpec(apo_down_loss),
    "discopop": LossSpec(discopop_loss, (TAU,)),
    "f_divergence": LossSpec(f_divergence_dpo_loss, (DIVERGENCE, ALPHA)),
    "simpo": LossSpec(simpo_loss, (GAMMA,), reference=False, means=True),
    "cpo": LossSpec(cpo_loss, (SMOOTHING,), reference=False, sft_weight=1.0),
    "alphapo": LossSpec(alphapo_loss, (GAMMA, ALPHA), reference=False, means=True),
    "orpo": LossSpec(orpo_loss, reference=False, means=True, sft_weight=1.0),
    "kto": LossSpec(kto_loss, (DESIRABLE, UNDESIRABLE), unpaired=True, statistic=KL),
    "bco": LossSpec(bco_loss, (DESIRABLE, UNDESIRABLE), unpaired=True, statistic=DELTA),
    "apo_zero_unpaired": LossSpec(apo_zero_unpaired_loss, (DESIRABLE, UNDESIRABLE), unpaired=True),
}

__all__ = [
    "PREFERENCE_LOSSES",
    "LossSpec",
    *dict.fromkeys(spec.function.__name__ for spec in PREFERENCE_LOSSES.values()),
]
