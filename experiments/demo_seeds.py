"""Claim: in the demo, PPO and DPO each lie at least one standard deviation of SFT's true reward above SFT's mean.

    python experiments/demo_seeds.py runs/demo-seeds

Runs the demo with seeds 0, 1 and 2 and prints how far each method rose, in standard deviations of the SFT
model's true reward over 200 held-out prompts. Exits with 1 where one of them is below 1. Figures: LOG.md.
"""

import sys
from pathlib import Path

from jaxalign.pipelines.demo import DemoConfig, run_demo

SEEDS = (0, 1, 2)

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-seeds")
    rises = {}
    for seed in SEEDS:
        result = run_demo(DemoConfig(output=str(folder / f"seed{seed}"), seed=seed))
        rises[seed] = {name: result.metrics[f"{name} above SFT (SD)"] for name in ("PPO", "DPO")}
    for seed, rise in rises.items():
        print(f"seed {seed}: " + ", ".join(f"{name} {value:+.2f} SD" for name, value in rise.items()))
    sys.exit(0 if all(value >= 1.0 for rise in rises.values() for value in rise.values()) else 1)
