"""Alignment losses as pure functions: arrays in, unreduced float32 arrays out.

No model, trainer or mesh inside. Reductions are separate and named. The preference losses come from their table, so
that one that is added there is exported here.
"""

from jaxalign.losses import preference
from jaxalign.losses.advantages import (
    generalized_advantage_estimation,
    global_batch_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    whiten,
)
from jaxalign.losses.aot import rank_matched
from jaxalign.losses.bradley_terry import best_of_n_loss, bradley_terry_loss
from jaxalign.losses.cispo import cispo_loss
from jaxalign.losses.cross_entropy import cross_entropy_loss
from jaxalign.losses.dft import dft_loss
from jaxalign.losses.distillation import forward_kl_loss, generalized_jsd_loss, reverse_kl_loss
from jaxalign.losses.entropy import entropy_bonus
from jaxalign.losses.gmpo import gmpo_loss
from jaxalign.losses.groups import (
    gdpo_advantages,
    gpg_advantages,
    group_advantages,
    leave_one_out_advantages,
    process_group_advantages,
    reinforce_plus_plus_baseline_advantages,
)
from jaxalign.losses.grpo import bnpo_loss, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss
from jaxalign.losses.importance import importance_weights, off_policy_weights
from jaxalign.losses.info_nce import info_nce_loss
from jaxalign.losses.kl import kl_penalty
from jaxalign.losses.kto import kto_kl
from jaxalign.losses.ld_dpo import length_desensitized_logps
from jaxalign.losses.nash_md import nash_md_loss
from jaxalign.losses.overlong import overlong_mask, overlong_penalty
from jaxalign.losses.plackett_luce import plackett_luce_loss
from jaxalign.losses.pointwise_reward import process_reward_loss, reward_bce_loss, reward_regression_loss
from jaxalign.losses.policy_gradient import gpg_loss, ppo_policy_loss, reinforce_loss
from jaxalign.losses.preference import *  # noqa: F403
from jaxalign.losses.reductions import fixed_length_mean, sequence_mean, token_mean
from jaxalign.losses.reward_ensemble import aggregate_ensemble, combine_objectives, ensemble_disagreement
from jaxalign.losses.rloo import rloo_loss
from jaxalign.losses.sft import sft_loss
from jaxalign.losses.subtrajectory_balance import subtrajectory_balance_loss
from jaxalign.losses.subtrajectory_dense import subtrajectory_balance_dense
from jaxalign.losses.token_credit import token_importance, token_rewards
from jaxalign.losses.unlikelihood import unlikelihood_loss
from jaxalign.losses.value import ppo_value_loss
from jaxalign.losses.value_discrimination import value_discrimination_loss
from jaxalign.losses.wpo import wpo_weights
from jaxalign.losses.xpo import xpo_loss

__all__ = [
    "aggregate_ensemble",
    "best_of_n_loss",
    "bnpo_loss",
    "bradley_terry_loss",
    "cispo_loss",
    "combine_objectives",
    "cross_entropy_loss",
    "dapo_loss",
    "dft_loss",
    "dr_grpo_loss",
    "ensemble_disagreement",
    "entropy_bonus",
    "fixed_length_mean",
    "forward_kl_loss",
    "gdpo_advantages",
    "generalized_advantage_estimation",
    "generalized_jsd_loss",
    "global_batch_advantages",
    "gmpo_loss",
    "gpg_advantages",
    "gpg_loss",
    "group_advantages",
    "grpo_loss",
    "gspo_loss",
    "importance_weights",
    "info_nce_loss",
    "kl_penalty",
    "kto_kl",
    "leave_one_out_advantages",
    "length_desensitized_logps",
    "nash_md_loss",
    "off_policy_weights",
    "overlong_mask",
    "overlong_penalty",
    "plackett_luce_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "process_group_advantages",
    "process_reward_loss",
    "rank_matched",
    "reinforce_loss",
    "reinforce_plus_plus_advantages",
    "reinforce_plus_plus_baseline_advantages",
    "remax_advantages",
    "reverse_kl_loss",
    "reward_bce_loss",
    "reward_regression_loss",
    "rloo_loss",
    "sequence_mean",
    "sft_loss",
    "subtrajectory_balance_dense",
    "subtrajectory_balance_loss",
    "token_importance",
    "token_mean",
    "token_rewards",
    "unlikelihood_loss",
    "value_discrimination_loss",
    "whiten",
    "wpo_weights",
    "xpo_loss",
    *preference.__all__,
]
