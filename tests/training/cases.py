"""The loss function of each trainer on a tiny model: `(loss, counts, trained, frozen, batch)`."""

import functools

import jax
import numpy as np

from jaxalign import llmdoctor, models
from jaxalign.llmdoctor.tfpo_config import TFPOLossConfig
from jaxalign.llmdoctor.tfpo_step import TFPOBatch, make_tfpo_loss, tfpo_counts
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core import setup
from jaxalign.training.core.batch import valid_count
from jaxalign.training.distill.config import DistillLossConfig
from jaxalign.training.distill.student_rows import DistillBatch
from jaxalign.training.distill.trainer import make_distill_loss
from jaxalign.training.preference.dpo import DPOLossConfig
from jaxalign.training.preference.objectives import PreferenceBatch, make_preference_loss
from jaxalign.training.reward_model.process import StepBatch, process_loss, step_count
from jaxalign.training.rl.actor_critic import build
from jaxalign.training.rl.gae_inputs import Outcome, advantages_of
from jaxalign.training.rl.kl_controller import KLConfig
from jaxalign.training.rl.online_dpo import SampledPairs, make_pair_loss
from jaxalign.training.rl.ppo_config import PPOConfig, PPOLossConfig
from jaxalign.training.rl.ppo_step import PPOBatch, PPORollout, make_ppo_loss, make_single_step_ppo_loss
from jaxalign.training.rl.rollout_metrics import rollout_counts
from jaxalign.training.sft import DemonstrationBatch, SFTLossConfig, make_sft_loss, sft_counts

KEY = jax.random.key(0)


def shape():
    return models.ModelConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
        max_positions=32,
    )  # fmt: skip


def rows(*lead: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 13, lead).astype(np.int32)
    columns = np.arange(12)
    return {
        "tokens": rng.integers(0, 64, (*lead, 12)).astype(np.int32),
        "lengths": lengths,
        "mask": (columns >= 3) & (columns < lengths[..., None]),
        "valid": np.arange(lead[0]) != 5,
    }


def sft_case(mesh):
    model = setup.place_model(models.create(shape(), key=KEY), mesh)
    policy, trained, frozen = setup.policy_of(model, LoraConfig(), mesh, key=KEY)
    loss = make_sft_loss(policy, SFTLossConfig(label_smoothing=0.1, z_loss=0.01))
    columns = rows(8)
    batch = DemonstrationBatch.of({**columns, "weights": columns["mask"].astype(np.float32)})
    return loss, sft_counts, setup.place_params(trained, mesh), frozen, batch


def distill_case(mesh):
    student, teacher = (
        setup.place_model(models.create(shape(), key=jax.random.key(k)), mesh) for k in (0, 1)
    )
    policy, trained, base = setup.policy_of(student, LoraConfig(), mesh, key=KEY)
    definition, leaves = models.split(teacher)
    loss = make_distill_loss(policy, definition, DistillLossConfig(temperature=0.5), vocabulary=64)
    columns = rows(8)
    columns |= {"weights": columns["mask"].astype(np.float32), "sampled": np.zeros(8, bool)}
    frozen = {"base": base, "teacher": leaves}
    return loss, sft_counts, setup.place_params(trained, mesh), frozen, DistillBatch.of(columns)


SUPERVISED_DPO = DPOLossConfig(sft_weight=0.1)
PLAIN_PPO = PPOLossConfig()
PLAIN_LORA = LoraConfig()


def preference_parts(mesh, config):
    """(policy, reference definition, trained, frozen, batch) of pairs, for KTO with its mismatched rows."""
    model, reference = (
        setup.place_model(models.create(shape(), key=jax.random.key(k)), mesh) for k in (0, 1)
    )
    policy, trained, base = setup.policy_of(model, LoraConfig(), mesh, key=KEY)
    definition, params = models.split(reference)
    batch = rows(8, 2) | {"margin": np.zeros(8, np.float32)}
    if config.spec.unpaired:
        batch["desirable"] = np.tile([True, False], (8, 1))
        batch |= {f"kl_{name}": rows(8, 2, seed=1)[name] for name in ("tokens", "mask", "lengths")}
    frozen = {"base": base, "reference": params}
    return policy, definition, setup.place_params(trained, mesh), frozen, PreferenceBatch.of(batch)


def dpo_case(mesh, config=SUPERVISED_DPO):
    policy, definition, trained, frozen, batch = preference_parts(mesh, config)
    return make_preference_loss(policy, definition, config), valid_count, trained, frozen, batch


def step_case(mesh):
    scalar = models.create_scalar_model(models.create(shape(), key=KEY), key=KEY)
    policy, trained, frozen = setup.scalar_of(scalar, None, mesh, key=KEY)
    batch, rng = rows(8), np.random.default_rng(2)
    # Rows of one to five steps, whose last tokens are anywhere.
    batch["mask"] &= rng.random((8, 12)) < 0.5
    batch["mask"][:, 4] = True
    batch["labels"] = rng.random((8, 12)).astype(np.float32)
    return process_loss(policy), step_count, trained, frozen, StepBatch.of(batch)


def online_dpo_case(mesh):
    """Pairs of a policy that has moved since it sampled them."""
    policy, _, trained, frozen, pairs = preference_parts(mesh, DPOLossConfig())
    batch, rng = pairs.columns(), np.random.default_rng(1)
    batch["old_logps"] = np.where(batch["mask"], -4 - rng.random(batch["mask"].shape), 0).astype(np.float32)
    batch["ref_logps"] = (-35 - rng.random((8, 2))).astype(np.float32)
    loss = make_pair_loss(policy, DPOLossConfig(), 0.7)
    return loss, valid_count, {"policy": trained}, {"policy": frozen["base"]}, SampledPairs.of(batch)


def ppo_models(mesh):
    def reward(*_, **__):
        return []

    return build(PPOConfig(), setup.place_model(models.create(shape(), key=KEY), mesh), reward, mesh, key=KEY)


def ppo_case(mesh, config=PLAIN_PPO):
    parts, batch = ppo_models(mesh), rows(8)
    rng = np.random.default_rng(1)
    for name in ("old_logps", "old_values", "advantages", "returns"):
        batch[name] = np.where(batch["mask"], rng.standard_normal((8, 12)), 0).astype(np.float32)
    batch["old_logps"] -= 4 * batch["mask"]
    batch |= {"policy_weight": np.ones(8, np.float32), "weights": np.ones((8, 12), np.float32)}
    loss = make_ppo_loss(parts.models, config, 0.7)
    return loss, rollout_counts, parts.trained, parts.frozen, PPOBatch.of(batch)


def ppo_alone_case(mesh):
    """The same where this is the only step on a rollout: it judges the rows itself. One of them has no reward."""
    config = PPOLossConfig(bootstrap_truncated=True)
    make_advantages = functools.partial(advantages_of, kl=KLConfig(), loss=config, whiten_rewards=True)
    parts, columns = ppo_models(mesh), rows(8)
    rng = np.random.default_rng(2)
    mask = columns["mask"] & (np.arange(8) != 3)[:, None]
    ref_logps, sampler_logps, token_rewards = (
        np.where(mask, rng.standard_normal((8, 12)), 0).astype(np.float32) for _ in range(3)
    )
    batch = PPORollout(
        tokens=columns["tokens"],
        lengths=columns["lengths"],
        mask=mask,
        outcome=Outcome(
            scores=rng.standard_normal(8).astype(np.float32),
            token_rewards=token_rewards,
            truncated=rng.random(8) < 0.5,
        ),
        sampler_logps=sampler_logps,
        ref_logps=ref_logps,
        coefficient=np.full(8, 0.1, np.float32),
        policy_weight=np.ones(8, np.float32),
    )
    loss = make_single_step_ppo_loss(parts.models, config, 0.7, make_advantages)
    return loss, rollout_counts, parts.trained, parts.frozen, batch


TILTED = TFPOLossConfig(preset="tilted")


def tfpo_case(mesh, config=TILTED, lora=PLAIN_LORA):
    """Pairs that part behind their first answer token or later, some cut; a doctor that has moved from its start."""
    model, other = (setup.place_model(models.create(shape(), key=jax.random.key(k)), mesh) for k in (0, 1))
    policy, trained, base = setup.policy_of(model, lora, mesh, key=KEY)
    if lora.enabled:
        trained = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(KEY, x.shape), trained)
    value = llmdoctor.create_value_head(shape(), models.HeadConfig(), key=KEY, ramp=1.3, horizon=6.0)
    horizon = value.pop("horizon")
    batch, rng = rows(8, 2), np.random.default_rng(4)
    shared = np.arange(12) < rng.integers(3, 6, (8, 1))
    batch["tokens"][:, 1] = np.where(shared, batch["tokens"][:, 0], batch["tokens"][:, 1])
    rewards = rng.standard_normal((8, 2, 12)) * (rng.random((8, 2, 12)) < 0.6)
    batch |= {
        "rewards": np.where(batch["mask"], rewards, 0).astype(np.float32),
        "terminated": rng.random((8, 2)) < 0.5,
    }
    reference = base if lora.enabled else models.split(other)[1]
    frozen = {"base": base, "reference": reference, "horizon": horizon}
    numbers = config.resolved()
    loss = make_tfpo_loss(policy, models.HeadConfig(), numbers)
    return loss, tfpo_counts(numbers), {"policy": trained, "value": value}, frozen, TFPOBatch.of(batch)
