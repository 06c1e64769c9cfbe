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
from jaxalign.losses.aot import aot_loss, aot_unpaired_loss, rank_matched
from jaxalign.losses.apo import apo_down_loss, apo_zero_loss, apo_zero_unpaired_loss
from jaxalign.losses.bco import bco_loss, bco_pair_loss
from jaxalign.losses.bradley_terry import best_of_n_loss, bradley_terry_loss
from jaxalign.losses.cispo import cispo_loss
from jaxalign.losses.cpo import cpo_loss
from jaxalign.losses.cross_entropy import cross_entropy_loss
from jaxalign.losses.discopop import discopop_loss
from jaxalign.losses.dpo import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from jaxalign.losses.entropy import entropy_bonus
from jaxalign.losses.exo import exo_loss
from jaxalign.losses.f_divergence import f_divergence_dpo_loss
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
from jaxalign.losses.kto import kto_kl, kto_loss
from jaxalign.losses.ld_dpo import length_desensitized_logps
from jaxalign.losses.nash_md import nash_md_loss
from jaxalign.losses.nca import nca_loss
from jaxalign.losses.orpo import orpo_loss
from jaxalign.losses.overlong import overlong_mask, overlong_penalty
from jaxalign.losses.policy_gradient import gpg_loss, ppo_policy_loss, reinforce_loss
from jaxalign.losses.reductions import fixed_length_mean, sequence_mean, token_mean
from jaxalign.losses.rloo import rloo_loss
from jaxalign.losses.sft import sft_loss
from jaxalign.losses.simpo import alphapo_loss, simpo_loss
from jaxalign.losses.sppo import sppo_loss
from jaxalign.losses.value import ppo_value_loss
from jaxalign.losses.wpo import wpo_weights
from jaxalign.losses.xpo import xpo_loss

__all__ = [
    "alphapo_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "bco_loss",
    "bco_pair_loss",
    "best_of_n_loss",
    "bnpo_loss",
    "bradley_terry_loss",
    "cpo_loss",
    "cross_entropy_loss",
    "discopop_loss",
    "dpo_loss",
    "exo_loss",
    "f_divergence_dpo_loss",
    "cispo_loss",
    "dapo_loss",
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
    "kto_kl",
    "kto_loss",
    "leave_one_out_advantages",
    "length_desensitized_logps",
    "nash_md_loss",
    "nca_loss",
    "orpo_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "rank_matched",
    "off_policy_weights",
    "overlong_mask",
    "overlong_penalty",
    "reinforce_loss",
    "reinforce_plus_plus_advantages",
    "reinforce_plus_plus_baseline_advantages",
    "remax_advantages",
    "rloo_loss",
    "robust_dpo_loss",
    "sequence_mean",
    "sft_loss",
    "simpo_loss",
    "sppo_loss",
    "token_mean",
    "whiten",
    "wpo_weights",
    "xpo_loss",
]
