"""TRL's policy-gradient losses, as functions of given log-probs."""

import math
import warnings
from types import SimpleNamespace

import torch
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanmax, nanmin

from tests.golden.references.trl_stubs import Accelerator, Metrics, function_of, run_part


def trainer(kind, logps, options, *, chosen=None, beta=0.0, weights=False):
    """What `_compute_loss` reads of a trainer; `chosen` [b, T] picks tokens after the ratio is taken."""

    def scores(*_, **__):
        return logps, torch.zeros_like(logps), None

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=scores,
        get_high_entropy_mask=lambda *_: chosen,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        top_entropy_quantile=1.0 if chosen is None else 0.5,
        off_policy_mask_threshold=None,
        importance_sampling_level=options.get("importance_level", "token"),
        beta=beta,
        loss_type=kind,
        epsilon_low=options.get("clip_low", 0.2),
        epsilon_high=options.get("clip_high", 0.2),
        use_vllm=weights,
        vllm_importance_sampling_correction=weights,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=options.get("length"),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": Metrics(inner=True)},
        args=SimpleNamespace(
            delta=options.get("dual_clip"),
            use_bias_correction_kl=options.get("correct_kl", False),
            steps_per_generation=1,
        ),
    )


def batch(inputs, rows=slice(None), columns=slice(None)):
    """TRL's inputs for a part of the rows and tokens."""
    mask = inputs["mask"][rows, columns].long()
    advantages = inputs["advantages"]
    one = torch.ones(len(mask), 1, dtype=torch.long)
    made = {
        "prompt_ids": one,
        "prompt_mask": one,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": advantages[rows, columns] if advantages.dim() == 2 else advantages[rows],
        "num_items_in_batch": mask.sum(),
    }
    for ours, theirs in (
        ("old_logps", "old_per_token_logps"),
        ("ref_logps", "ref_per_token_logps"),
        ("weights", "importance_sampling_ratio"),
    ):
        if ours in inputs:
            made[theirs] = inputs[ours][rows, columns]
    return made


def grpo(kind, inputs, options, rows=slice(None), columns=slice(None), *, chosen=None, loss=None):
    """The scalar that `GRPOTrainer._compute_loss` makes of a part of the rows and tokens."""
    beta = options.get("beta", 0.0) if "ref_logps" in inputs else 0.0
    made = trainer(
        kind,
        inputs["logps"][rows, columns],
        options,
        chosen=chosen,
        beta=beta,
        weights="weights" in inputs,
    )
    given = batch(inputs, rows, columns)
    if chosen is not None:  # dapo divides by this number, so that one chosen token is its own mean
        given["num_items_in_batch"] = torch.tensor(1)
    return (loss or GRPOTrainer._compute_loss)(made, None, given)


def each_token(inputs, call):
    """[B, T] from `call(row, column)` for the counted tokens, 0 elsewhere."""
    mask = inputs["mask"].bool()
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack(
        [
            torch.stack([call(i, j) if mask[i, j] else zero for j in range(mask.shape[1])])
            for i in range(len(mask))
        ]
    )


def grpo_tokens(kind, inputs, options):
    """Unreduced: a token is a batch of its own, or, where its ratio needs the row, the only one chosen."""
    if options.get("importance_level", "token") == "token":
        return each_token(inputs, lambda i, j: grpo(kind, inputs, options, slice(i, i + 1), slice(j, j + 1)))
    loss = gspo_token() if options["importance_level"] == "sequence_token" else None

    def one(i, j):
        chosen = torch.arange(inputs["mask"].shape[1])[None] == j
        kinds = "dapo" if kind == "grpo" else kind
        return grpo(kinds, inputs, options, slice(i, i + 1), chosen=chosen, loss=loss)

    return each_token(inputs, one)


def gspo_token():
    """`_compute_loss` of the last release that had GSPO-token."""
    scope = {"torch": torch, "nanmax": nanmax, "nanmin": nanmin}
    return function_of("1.12.0", "experimental/gspo_token/grpo_trainer.py", "_compute_loss", scope)


def each_row(inputs, call):
    return torch.stack([call(slice(i, i + 1)) for i in range(len(inputs["mask"]))])


def gmpo(inputs, options):
    def row(rows):
        made = trainer("grpo", inputs["logps"][rows], options)
        return GMPOTrainer._compute_loss(made, None, batch(inputs, rows))

    return each_row(inputs, row)


def rloo(inputs, options):
    def row(rows):
        made = trainer("rloo", inputs["logps"][rows], options)
        given = batch(inputs, rows)
        given["old_logps"] = (given["old_per_token_logps"] * given["completion_mask"]).sum(1)
        return RLOOTrainer._compute_loss(made, None, given)

    return each_row(inputs, row)


def kl(inputs, options):
    kind = options["estimator"]
    if kind == "k3":  # no advantage: what is left of the loss is its KL
        rows = len(inputs["logps"])
        given = inputs | {"old_logps": inputs["logps"].detach(), "advantages": torch.zeros(rows)}
        return grpo_tokens("grpo", given, {"beta": 1.0})
    penalty = function_of("0.11.4", "trainer/ppo_trainer.py", "_kl_penalty", {})
    config = SimpleNamespace(kl_penalty={"k1": "kl", "k2": "mse", "abs": "abs"}[kind])
    return penalty(SimpleNamespace(config=config), inputs["logps"], inputs["ref_logps"]) * inputs["mask"]


def ppo(inputs, options, *, part):
    """`PPOTrainer.loss` (its policy's or its value's part) of each token alone."""
    scope = {"torch": torch, "warnings": warnings, "flatten_dict": lambda x: x}
    for name in ("masked_mean", "masked_var", "clip_by_value", "entropy_from_logits"):
        scope[name] = function_of("0.11.4", "core.py", name, scope)
    loss = function_of("0.11.4", "trainer/ppo_trainer.py", "loss", scope)
    clip = options.get("clip")
    made = SimpleNamespace(
        config=SimpleNamespace(
            cliprange=options.get("clip_low", 0.2),
            cliprange_value=float("inf") if clip is None else clip,
            vf_coef=1.0,
            ratio_threshold=float("inf"),
        )
    )
    zeros = torch.zeros_like(inputs["mask"], dtype=torch.float64)

    def one(i, j):
        def at(name):
            return inputs.get(name, zeros)[i : i + 1, j : j + 1]

        arguments = {
            "old_logprobs": at("old_logps"),
            "values": at("old_values"),
            "logits": torch.zeros(1, 1, 2, dtype=torch.float64),
            "vpreds": at("values"),
            "logprobs": at("logps"),
            "mask": at("mask").long(),
            "advantages": at("advantages"),
            "returns": at("returns"),
        }
        return loss(made, **arguments)[part]

    return each_token(inputs, one)


def ppo_policy(inputs, options):
    if options:
        return grpo_tokens("grpo", inputs, options)
    return ppo(inputs, options, part=0)


def importance(inputs, options):
    """The part of the scoring method that makes the ratios for a sampler of its own."""
    part = "if self.use_vllm and self.vllm_importance_sampling_correction:\n    mask = completion_mask"
    scope = run_part(
        GRPOTrainer._generate_and_score_completions,
        part,
        part,
        {
            "torch": torch,
            "math": math,
            "self": SimpleNamespace(
                use_vllm=True,
                vllm_importance_sampling_correction=True,
                vllm_importance_sampling_mode=f"{options['level']}_{options['mode']}",
                vllm_importance_sampling_clip_min=options.get("floor"),
                vllm_importance_sampling_clip_max=options["cap"],
            ),
            "completion_mask": inputs["mask"].long(),
            "tool_mask": None,
            "old_per_token_logps": inputs["old_logps"],
            "sampling_per_token_logps": inputs["sampling_logps"],
        },
    )
    return scope["vllm_importance_sampling_ratio"] * inputs["mask"]


def off_policy(inputs, options):
    keep = GRPOTrainer.get_off_policy_mask(
        inputs["advantages"][:, None],
        inputs["logps"],
        inputs["sampling_logps"],
        inputs["mask"].double(),
        options["threshold"],
    )
    return keep * inputs["mask"]


def overlong(inputs, options):
    punish = get_soft_overlong_punishment(options["max_length"], options["buffer"])
    return torch.tensor(punish([[0] * int(n) for n in inputs["lengths"]]), dtype=torch.float64)


def reduction(kind):
    """TRL's denominators: on policy and without a reference, an advantage of -x makes a token's loss x."""

    def reference(inputs, options):
        zeros = torch.zeros_like(inputs["x"])
        given = {"logps": zeros, "old_logps": zeros, "advantages": -inputs["x"], "mask": inputs["mask"]}
        return grpo(kind, given, options)

    return reference


def reinforce(inputs, options):
    del options
    return torch.where(inputs["mask"], -(inputs["logps"] * inputs["advantages"]), 0.0)


REFERENCES = {
    "kl_penalty": kl,
    "reinforce_loss": reinforce,
    "gpg_loss": reinforce,
    "ppo_policy_loss": ppo_policy,
    "ppo_value_loss": lambda i, o: ppo(i, o, part=1),
    "grpo_loss": lambda i, o: grpo_tokens("grpo", i, o),
    "bnpo_loss": lambda i, o: grpo("bnpo", i, o),
    "dapo_loss": lambda i, o: grpo("dapo", i, o | {"clip_high": 0.28}),
    "dr_grpo_loss": lambda i, o: grpo("dr_grpo", i, o),
    "gspo_loss": lambda i, o: each_row(
        i, lambda rows: grpo("grpo", i, o | {"importance_level": "sequence"}, rows)
    ),
    "cispo_loss": lambda i, o: grpo_tokens("cispo", i, o | {"clip_high": o["cap"]}),
    "gmpo_loss": gmpo,
    "rloo_loss": rloo,
    "importance_weights": importance,
    "off_policy_weights": off_policy,
    "entropy_bonus": lambda i, o: torch.where(i["mask"], -o["coefficient"] * i["entropy"], 0.0),
    "overlong_penalty": overlong,
    "token_mean": reduction("bnpo"),
    "sequence_mean": reduction("grpo"),
    "fixed_length_mean": reduction("dr_grpo"),
}
