"""The preference losses by name: what each reads, and its terms on a batch of scored completions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import losses

# A filler row's place in a sorted batch: last, matched with other filler rows.
_LAST = 1e9


@dataclass(frozen=True)
class Form:
    """How a loss is called.

    Attributes:
      function: the loss.
      options: fields of the loss configuration that it takes, besides beta.
      reference: it reads the reference's log-probs.
      means: it reads mean log-probs a token rather than sums.
      unpaired: it reads single completions with labels.
      statistic: what couples the rows of a batch: ranks (AOT), kl (KTO) or delta (BCO); "" for nothing.
    """

    function: Callable[..., Any]
    options: tuple[str, ...] = ()
    reference: bool = True
    means: bool = False
    unpaired: bool = False
    statistic: Literal["", "ranks", "kl", "delta"] = ""


SMOOTHED = ("label_smoothing",)
WEIGHTS = ("desirable_weight", "undesirable_weight")
FORMS: Mapping[str, Form] = {
    "dpo": Form(losses.dpo_loss, SMOOTHED),
    "robust": Form(losses.robust_dpo_loss, SMOOTHED),
    "ipo": Form(losses.ipo_loss),
    "hinge": Form(losses.hinge_loss),
    "exo": Form(losses.exo_loss, SMOOTHED),
    "nca": Form(losses.nca_loss),
    "bco_pair": Form(losses.bco_pair_loss, statistic="delta"),
    "sppo": Form(losses.sppo_loss),
    "aot": Form(losses.aot_loss, SMOOTHED, statistic="ranks"),
    "aot_unpaired": Form(losses.aot_unpaired_loss, SMOOTHED, statistic="ranks"),
    "apo_zero": Form(losses.apo_zero_loss),
    "apo_down": Form(losses.apo_down_loss),
    "discopop": Form(losses.discopop_loss, ("tau",)),
    "f_divergence": Form(losses.f_divergence_dpo_loss, ("divergence", "alpha")),
    "simpo": Form(losses.simpo_loss, ("gamma",), reference=False, means=True),
    "cpo": Form(losses.cpo_loss, SMOOTHED, reference=False),
    "alphapo": Form(losses.alphapo_loss, ("gamma", "alpha"), reference=False, means=True),
    "orpo": Form(losses.orpo_loss, reference=False, means=True),
    "kto": Form(losses.kto_loss, WEIGHTS, unpaired=True, statistic="kl"),
    "bco": Form(losses.bco_loss, WEIGHTS, unpaired=True, statistic="delta"),
    "apo_zero_unpaired": Form(losses.apo_zero_unpaired_loss, WEIGHTS, unpaired=True),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoredRows:
    """Completions of a batch as the losses read them; [B, G], G completions of a prompt (chosen, rejected).

    Attributes:
      logps: log-probs under the policy: sums (or means, or length-desensitised), nats.
      ref_logps: the same under the reference; zeros for a loss without one.
      desirable: whether a completion is to be imitated.
      valid: [B], False in filler rows.
      kl_ratio: log-ratio of mismatched prompts and completions, for KTO; zeros elsewhere.
    """

    logps: Float[Array, "B G"]
    ref_logps: Float[Array, "B G"]
    desirable: Bool[Array, "B G"]
    valid: Bool[Array, " B"]
    kl_ratio: Float[Array, "B G"]


def row_terms(
    rows: ScoredRows,
    config: Any,
    statistics: Mapping[str, jax.Array],
    own: Callable[..., Any] | None = None,
) -> Float[Array, " B"]:
    """The loss of each example.

    Args:
      rows: scored completions.
      config: a `DPOLossConfig`.
      statistics: of the whole batch, see `batch_statistics`.
      own: called in place of the loss that the configuration names, as that is but without its options.
    """
    form = FORMS[config.name]
    options = {"beta": config.beta} | {name: getattr(config, name) for name in form.options}
    function = form.function
    if own is not None:
        function, options = own, {}
    policy, ref = rows.logps, rows.ref_logps
    if form.unpaired:
        flat = function(
            policy.ravel(),
            ref.ravel(),
            rows.desirable.ravel(),
            **options,
            **statistics,
        )
        return flat.reshape(policy.shape).mean(axis=1)
    two = (policy[:, 0], policy[:, 1])
    four = (*two, ref[:, 0], ref[:, 1]) if form.reference else two
    return function(*four, **options, **statistics)


def arguments_of(name: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """What the function of a loss is given by position, and by name besides its options: the axes of each array."""
    form = FORMS[name]
    kind = "mean_logps" if form.means else "logps"
    if form.unpaired:
        given = ("policy_logps", "ref_logps", "desirable")
    else:
        models = ("policy", "ref") if form.reference else ("policy",)
        given = tuple(f"{model}_{which}_{kind}" for model in models for which in ("chosen", "rejected"))
    statistics = {"kl": (), "delta": ()} | dict.fromkeys(
        ("matched", "matched_chosen", "matched_rejected"), ("B",)
    )
    ranks = ("matched",) if name == "aot" else ("matched_rejected", "matched_chosen")
    named = ranks if form.statistic == "ranks" else (form.statistic,) if form.statistic else ()
    return dict.fromkeys(given, ("B",)), {key: statistics[key] for key in named}


def batch_statistics(rows: ScoredRows, config: Any) -> dict[str, jax.Array]:
    """What a loss that couples rows is given of the whole batch; no gradient.

    AOT: the matched margin (or log-ratios) of each row. KTO: the KL estimate, a scalar. BCO: delta, the mean
    reward; the paper keeps a running mean, which is this one of ever larger batches.
    """
    kind = FORMS[config.name].statistic
    if not kind:
        return {}
    rows = jax.lax.stop_gradient(rows)
    ratio = rows.logps - rows.ref_logps
    every = jnp.broadcast_to(rows.valid[:, None], ratio.shape)
    if kind == "kl":
        kl = losses.kto_kl(rows.kl_ratio.ravel(), jnp.zeros(rows.kl_ratio.size), every.ravel())
        return {"kl": kl}
    if kind == "delta":
        return {"delta": config.beta * losses.token_mean(ratio, every)}

    def last(x: jax.Array) -> jax.Array:
        return jnp.where(rows.valid, x, _LAST)

    if config.name == "aot":
        margins = (last(x[:, 0] - x[:, 1]) for x in (rows.logps, rows.ref_logps))
        return {"matched": losses.rank_matched(*margins)}
    chosen, rejected = last(ratio[:, 0]), last(ratio[:, 1])
    return {
        "matched_rejected": losses.rank_matched(chosen, rejected),
        "matched_chosen": losses.rank_matched(rejected, chosen),
    }
