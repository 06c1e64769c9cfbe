"""Trainers: one file each for SFT, reward models, preference losses and PPO, on shared machinery."""
