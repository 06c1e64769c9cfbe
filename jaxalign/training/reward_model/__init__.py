"""Reward models: of completions, of steps, and ensembles of them."""
