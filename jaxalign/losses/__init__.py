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
from jaxalign.losses.dft import dft_loss
from jaxalign.losses.distillation import forward_kl_loss, generalized_jsd_loss, reverse_kl_loss
from jaxalign.losses.dpo import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.losses.info_nce import info_nce_loss
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.plackett_luce import plackett_luce_loss
from jaxalign.losses.pointwise_reward import process_reward_loss, reward_bce_loss, reward_regression_loss
from jaxalign.losses.policy_gradient import ppo_policy_loss
from jaxalign.losses.reductions import fixed_length_mean, sequence_mean, token_mean
from jaxalign.losses.reward_ensemble import aggregate_ensemble, combine_objectives, ensemble_disagreement
from jaxalign.losses.subtrajectory_balance import subtrajectory_balance_loss
from jaxalign.losses.subtrajectory_dense import subtrajectory_balance_dense
from jaxalign.losses.token_credit import token_importance, token_rewards
from jaxalign.losses.unlikelihood import unlikelihood_loss
from jaxalign.losses.value import ppo_value_loss
from jaxalign.losses.value_discrimination import value_discrimination_loss

__all__ = [
    "aggregate_ensemble",
    "best_of_n_loss",
    "bradley_terry_loss",
    "combine_objectives",
    "cross_entropy_loss",
    "dft_loss",
    "dpo_loss",
    "ensemble_disagreement",
    "fixed_length_mean",
    "forward_kl_loss",
    "generalized_advantage_estimation",
    "generalized_jsd_loss",
    "group_advantages",
    "hinge_loss",
    "info_nce_loss",
    "ipo_loss",
    "kl_penalty",
    "leave_one_out_advantages",
    "plackett_luce_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "process_reward_loss",
    "reverse_kl_loss",
    "reward_bce_loss",
    "reward_regression_loss",
    "robust_dpo_loss",
    "sequence_mean",
    "subtrajectory_balance_dense",
    "subtrajectory_balance_loss",
    "token_importance",
    "token_mean",
    "token_rewards",
    "unlikelihood_loss",
    "value_discrimination_loss",
    "whiten",
]
