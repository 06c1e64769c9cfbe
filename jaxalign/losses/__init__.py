"""Alignment losses as pure functions: arrays in, unreduced float32 arrays out.

No model, trainer or mesh inside. Reductions are separate and named.
"""

from jaxalign.losses.advantages import (
    generalized_advantage_estimation,
    group_advantages,
    leave_one_out_advantages,
    whiten,
)
from jaxalign.losses.bradley_terry import best_of_n_loss, bradley_terry_loss
from jaxalign.losses.cross_entropy import cross_entropy_loss
from jaxalign.losses.dpo import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.policy_gradient import ppo_policy_loss
from jaxalign.losses.reductions import fixed_length_mean, sequence_mean, token_mean
from jaxalign.losses.value import ppo_value_loss

__all__ = [
    "best_of_n_loss",
    "bradley_terry_loss",
    "cross_entropy_loss",
    "dpo_loss",
    "fixed_length_mean",
    "generalized_advantage_estimation",
    "group_advantages",
    "hinge_loss",
    "ipo_loss",
    "kl_penalty",
    "leave_one_out_advantages",
    "ppo_policy_loss",
    "ppo_value_loss",
    "robust_dpo_loss",
    "sequence_mean",
    "token_mean",
    "whiten",
]
