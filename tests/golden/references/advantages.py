"""TRL's advantages, most of them a part of a long method."""

from functools import partial
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

from tests.golden.references.trl_stubs import function_of, run_part


def whitening(*, unbiased=True):
    """`masked_whiten` with the statistics it calls."""
    scope = {"torch": torch}
    scope["masked_mean"] = function_of("0.11.4", "core.py", "masked_mean", scope)
    scope["masked_var"] = partial(function_of("0.11.4", "core.py", "masked_var", scope), unbiased=unbiased)
    return function_of("0.11.4", "core.py", "masked_whiten", scope)


def whiten(inputs, options):
    masked_whiten = whitening(unbiased=options.get("unbiased", True))
    mask = inputs["mask"].double()
    return masked_whiten(inputs["x"], mask, shift_mean=options.get("shift_mean", True)) * mask


def gae(inputs, options):
    """TRL where rows are contiguous; with gaps or a bootstrap the sum of discounted residuals."""
    if "bootstrap_values" in inputs:
        return residuals(**inputs, **options)
    plain = {"torch": torch, "masked_whiten": lambda x, _: x}  # advantages as they are, not whitened
    compute = function_of("0.11.4", "trainer/ppo_trainer.py", "compute_advantages", plain)
    trainer = SimpleNamespace(config=SimpleNamespace(whiten_rewards=False, **options))
    mask = inputs["mask"].double()
    _, advantages, returns = compute(trainer, inputs["values"], inputs["rewards"], mask)
    # TRL's values before a row's start are 0, and what it makes of them is thrown away.
    return advantages * mask, returns * mask


def residuals(rewards, values, mask, gamma, lam, bootstrap_values):
    """A_i = sum_{j >= i} (gamma * lam)^(j - i) * delta_j over the counted steps of a row."""
    result = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        at = torch.nonzero(mask[row])[:, 0]
        v = values[row, at]
        after = torch.cat([v[1:], bootstrap_values[row : row + 1]])
        delta = rewards[row, at] + gamma * after - v
        steps = torch.arange(len(at))
        power = (steps[None] - steps[:, None]).double()
        discount = torch.where(power >= 0, (gamma * lam) ** power, 0.0)
        result[row, at] = discount @ delta
    return result, (result + values) * mask


def kinds(inputs):
    """Rewards [B, R] with NaN, TRL's mark of a reward that does not apply."""
    rewards = inputs["rewards"]
    if "mask" in inputs:
        rewards = torch.where(inputs["mask"].bool(), rewards, float("nan"))
    return rewards if rewards.dim() == 2 else rewards[:, None]


def trl(trainer, rewards, size, **settings):
    """The part of the scoring method from rewards to advantages."""
    settings = {
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "reward_weights": torch.ones(rewards.shape[1], dtype=torch.float64),
        "reward_funcs": [None] * rewards.shape[1],
        "reward_clip_range": None,
        "beta": 0.0,
        "normalize_advantages": False,
    } | settings
    scope = run_part(
        trainer._generate_and_score_completions,
        "unscorable_mask = ",
        "advantages = torch.nan_to_num(",
        {
            "torch": torch,
            "nanstd": nanstd,
            "self": SimpleNamespace(**settings),
            "rewards_per_func": rewards,
            "num_generations": size,
            "device": torch.device("cpu"),
        },
    )
    return scope["advantages"]


def group(inputs, options):
    scale = {"std": "group"}.get(options.get("scale", "std"), options.get("scale"))
    size = options["group_size"]
    if inputs["rewards"].dim() == 1:
        return trl(GRPOTrainer, kinds(inputs), size, scale_rewards=scale)
    columns = kinds(inputs).T
    return torch.stack([trl(GRPOTrainer, c[:, None].clone(), size, scale_rewards=scale) for c in columns], 1)


def normalized(x):
    """`RLOOTrainer`'s advantages over the batch; NaN does not count."""
    scope = {
        "torch": torch,
        "nanstd": nanstd,
        "self": SimpleNamespace(normalize_advantages=True),
        "advantages": x,
    }
    first = "if self.normalize_advantages"
    method = RLOOTrainer._generate_and_score_completions
    return torch.nan_to_num(run_part(method, first, first, scope)["advantages"])


def groups_of(inputs, options):
    """(row numbers of what counts) for each group."""
    size = options["group_size"]
    for start in range(0, len(inputs["rewards"]), size):
        yield [i for i in range(start, start + size) if inputs["mask"][i]]


def group_centred(inputs, options):
    result = torch.full_like(inputs["rewards"], float("nan"))
    for rows in groups_of(inputs, options):
        result[rows] = inputs["rewards"][rows] - inputs["rewards"][rows].mean()
    return result


def gpg(inputs, options):
    groups = list(groups_of(inputs, options))
    unlike = [rows for rows in groups if len(set(inputs["rewards"][rows].tolist())) > 1]
    alpha = sum(map(len, groups)) / sum(map(len, unlike))
    return alpha * torch.nan_to_num(group_centred(inputs, options))


def plus_plus_baseline(inputs, options):
    x = group_centred(inputs, options)
    counted = x[inputs["mask"]]
    return torch.nan_to_num((x - counted.mean()) / (counted.std() + 1e-4))


def gdpo(inputs, options):
    if options.get("normalize", True):
        settings = {
            "multi_objective_aggregation": "normalize_then_sum",
            "reward_weights": inputs["weights"],
        }
        return trl(GRPOTrainer, kinds(inputs), options["group_size"], **settings)
    result = torch.zeros(len(inputs["rewards"]), dtype=torch.float64)
    for kind, weight in enumerate(inputs["weights"]):
        one = {"rewards": inputs["rewards"][:, kind], "mask": inputs["mask"][:, kind]}
        for rows in groups_of(one, options):
            x = one["rewards"][rows]
            result[rows] += weight * (x - x.mean()) / (x.std() + 1e-4)
    return result


def plus_plus(inputs, options):
    """Straight from the sum: what is left of a row, discounted by counted steps."""
    gamma = options.get("gamma", 1.0)
    result = torch.full_like(inputs["old_logps"], float("nan"))
    for row, mask in enumerate(inputs["mask"]):
        at = torch.nonzero(mask)[:, 0].tolist()
        penalty = options["beta"] * (inputs["old_logps"] - inputs["ref_logps"])[row]
        for i, step in enumerate(at):
            left = [gamma**k * penalty[later] for k, later in enumerate(at[i:])]
            result[row, step] = inputs["rewards"][row] * gamma ** (len(at) - 1 - i) - sum(left)
    if options.get("normalize", True):
        counted = result[inputs["mask"]]
        result = (result - counted.mean()) / torch.sqrt(counted.var() + 1e-8)
    return torch.nan_to_num(result)


def process(inputs, options):
    """Token by token: the normalised rewards of the steps still to end."""
    rewards, mask = inputs["rewards"], inputs["mask"].bool()
    ends = inputs["steps"].bool() & mask
    result = torch.zeros_like(rewards)
    size = options["group_size"]
    for start in range(0, len(rewards), size):
        rows = range(start, start + size)
        found = torch.stack([rewards[i, t] for i in rows for t in range(rewards.shape[1]) if ends[i, t]])
        for i in rows:
            for t in torch.nonzero(mask[i])[:, 0].tolist():
                later = [rewards[i, u] for u in range(t, rewards.shape[1]) if ends[i, u]]
                result[i, t] = sum((r - found.mean()) / (found.std() + 1e-4) for r in later)
    return result


def remax(inputs, options):
    del options
    return torch.where(inputs["mask"], inputs["rewards"] - inputs["greedy_rewards"], 0.0)


REFERENCES = {
    "generalized_advantage_estimation": gae,
    "whiten": whiten,
    "global_batch_advantages": lambda i, o: normalized(kinds(i)[:, 0]),
    "group_advantages": group,
    "leave_one_out_advantages": lambda i, o: trl(RLOOTrainer, kinds(i), o["group_size"]),
    "process_group_advantages": process,
    "gpg_advantages": gpg,
    "reinforce_plus_plus_baseline_advantages": plus_plus_baseline,
    "gdpo_advantages": gdpo,
    "reinforce_plus_plus_advantages": plus_plus,
    "remax_advantages": remax,
}
