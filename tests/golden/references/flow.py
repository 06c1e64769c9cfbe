"""Token rewards and flow-based losses: derivations in float64, row by row and pair by pair."""

import torch
import torch.nn.functional as F


def importance(inputs, options):
    """Of each row's counted tokens, put back in their places."""
    result = torch.zeros_like(inputs["positive_logps"])
    for row, mask in enumerate(inputs["mask"]):
        gap = (inputs["positive_logps"][row, mask] - inputs["negative_logps"][row, mask]).abs()
        relative = gap / (gap.mean() + options.get("epsilon", 1e-6))
        result[row, mask] = torch.tanh(relative / options["temperature"])
    return result


def rewards(inputs, options):
    keep = inputs["mask"] & (inputs["importance"] > options["threshold"])
    sign = inputs["preferred"].double() * 2 - 1
    return sign[:, None] * torch.where(keep, inputs["importance"], 0.0)


def balance(inputs, options):
    """log [F(s_n) / F(s_m)] - sum of log pi between them, squared, over every pair of a row's states."""
    decay, window = options.get("decay", 1.0), options.get("window", 10**9)
    losses = []
    for row in range(len(inputs["mask"])):
        tokens = inputs["mask"][row].nonzero()[:, 0].tolist()
        values = [inputs["log_values"][row, t] for t in [*tokens, tokens[-1] + 1]]
        if (
            options.get("pin_terminal", True)
            and inputs.get("terminated", torch.ones(len(inputs["mask"])))[row]
        ):
            values[-1] = torch.zeros((), dtype=torch.float64)
        prefix = torch.zeros((), dtype=torch.float64)
        flows = [values[0]]
        for t, value in zip(tokens, values[1:], strict=True):
            prefix = prefix + options.get("reward_scale", 1.0) * inputs["rewards"][row, t]
            if "ref_logps" in inputs:
                prefix = prefix + options.get("reference_weight", 0.0) * inputs["ref_logps"][row, t]
            flows.append(prefix + value)
        total = weights = 0.0
        for m in range(len(flows)):
            for n in range(m + 1, min(m + window, len(tokens)) + 1):
                policy = inputs["logps"][row, tokens[m:n]].sum()
                total = total + decay ** (n - m) * (flows[n] - flows[m] - policy) ** 2
                weights += decay ** (n - m)
        losses.append(total if options.get("reduction") == "sum" else total / weights)
    return torch.stack(losses)


def discrimination(inputs, options):
    better, worse = inputs["preferred_log_values"], inputs["rejected_log_values"]
    return F.margin_ranking_loss(
        better, worse, torch.ones_like(better), margin=options["margin"], reduction="none"
    )


REFERENCES = {
    "token_importance": importance,
    "token_rewards": rewards,
    "subtrajectory_balance_loss": balance,
    "subtrajectory_balance_dense": balance,
    "value_discrimination_loss": discrimination,
}
