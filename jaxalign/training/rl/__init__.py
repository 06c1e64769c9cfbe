"""Training on the policy's own samples: PPO, GRPO and its relatives, online DPO."""
