"""The reward of the GRPO cases: arbitrary, exact, and free."""


def reward(prompts, completions, *, completion_ids, columns):
    """Depends on the first tokens alone."""
    del prompts, completions, columns
    return [float(sum(ids[:4]) % 7) for ids in completion_ids]
