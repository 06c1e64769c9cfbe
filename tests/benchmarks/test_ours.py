"""The command lines of `benchmarks/ours.py`, which must stay what jaxalign understands."""

import json


def test_every_case_is_a_command_line_that_jaxalign_reads(benchmark, tmp_path):
    ours, cases = benchmark("ours"), benchmark("cases")
    found = {}
    for case in cases.CASES:
        if case.task != "generate":
            found[case.name] = ours.read_settings(ours.COMMANDS[case.task], ours.settings(case, tmp_path))
    assert found["sft-chat-s"].train.packing and not found["sft-s"].train.packing
    assert found["sft-s-bf16"].model.compute_dtype == "bfloat16"
    ppo = found["ppo-s"]
    assert (ppo.train.epochs, ppo.train.minibatches, ppo.kl.coefficient) == (1, 1, cases.KL)
    assert ppo.optimizer == ppo.critic.optimizer and not ppo.optimizer.max_grad_norm
    assert ppo.loss.whiten_advantages and ppo.loss.unbiased_variance and not ppo.reward.whiten
    assert found["ppo-s-epochs"].train.epochs == 4


def test_what_steps_logged_is_found_by_step(benchmark, tmp_path):
    rows = [
        {"step": 1, "train/loss": 2.0, "train/grad_norm": 3.0},
        {"step": 1, "eval/loss": 9.0},
        {"step": 2, "policy/loss": 0.1, "value/loss": 0.2, "loss": 0.12, "grad_norm": 4.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"losses": [2.0, 0.1], "value_losses": [0.2], "grad_norms": [3.0, 4.0]}
    assert benchmark("ours").logged(path) == expected
