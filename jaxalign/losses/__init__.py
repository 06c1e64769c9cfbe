"""Alignment losses as pure functions: arrays in, unreduced float32 arrays out.

No model, trainer or mesh inside. Reductions are separate and named.
"""

from jaxalign.losses.advantages import (
    generalized_advantage_estimation,
    global_batch_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    whiten,
)
from jaxalign.losses.bradley_terry import best_of_n_loss, bradley_terry_loss
from jaxalign.losses.cispo import cispo_loss
from jaxalign.losses.cross_entropy import cross_entropy_loss
from jaxalign.losses.dpo import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.losses.entropy import entropy_bonus
from jaxalign.losses.gmpo import gmpo_loss
from jaxalign.losses.groups import (
    gdpo_advantages,
    gpg_advantages,
    group_advantages,
    leave_one_out_advantages,
    reinforce_plus_plus_baseline_advantages,
)
from jaxalign.losses.grpo import bnpo_loss, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss
from jaxalign.losses.importance import importance_weights, off_policy_weights
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.overlong import overlong_mask, overlong_penalty
from jaxalign.losses.policy_gradient import gpg_loss, ppo_policy_loss, reinforce_loss
from jaxalign.losses.reductions import fixed_length_mean, sequence_mean, token_mean
from jaxalign.losses.rloo import rloo_loss
from jaxalign.losses.value import ppo_value_loss

__all__ = [
    "best_of_n_loss",
    "bnpo_loss",
    "bradley_terry_loss",
    "cispo_loss",
    "cross_entropy_loss",
    "dapo_loss",
    "dpo_loss",
    "dr_grpo_loss",
    "entropy_bonus",
    "fixed_length_mean",
    "gdpo_advantages",
    "generalized_advantage_estimation",
    "global_batch_advantages",
    "gmpo_loss",
    "gpg_advantages",
    "gpg_loss",
    "group_advantages",
    "grpo_loss",
    "gspo_loss",
    "hinge_loss",
    "importance_weights",
    "ipo_loss",
    "kl_penalty",
    "leave_one_out_advantages",
    "off_policy_weights",
    "overlong_mask",
    "overlong_penalty",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reinforce_loss",
    "reinforce_plus_plus_advantages",
    "reinforce_plus_plus_baseline_advantages",
    "remax_advantages",
    "rloo_loss",
    "robust_dpo_loss",
    "sequence_mean",
    "token_mean",
    "whiten",
]
