"""GRPO of an Equinox model: group advantages and the clipped loss on samples that it drew itself.

Needs equinox (pip install equinox). Run: python examples/grpo_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxalign.logprobs import token_logprobs
from jaxalign.losses import group_advantages, grpo_loss, sequence_mean

VOCABULARY, LENGTH, PROMPTS, GROUP = 6, 4, 32, 8


class Bigram(eqx.Module):
    """Next-token logits from the token before."""

    table: jax.Array

    def __call__(self, tokens):
        return self.table[tokens]


def sample(model, start, key):
    """Continues start [N] by LENGTH tokens: [N, 1 + LENGTH]."""

    def step(token, key):
        token = jax.random.categorical(key, model(token))
        return token, token

    _, drawn = jax.lax.scan(step, start, jax.random.split(key, LENGTH))
    return jnp.concatenate([start[:, None], drawn.T], axis=1)


def reward(tokens):
    """Part of the tokens that are one more than the one before: [N]."""
    return jnp.mean(tokens[:, 1:] == (tokens[:, :-1] + 1) % VOCABULARY, axis=1)


def train(updates=60, seed=0):
    """Returns the mean reward of each update's samples."""
    key, table_key = jax.random.split(jax.random.key(seed))
    model = Bigram(0.1 * jax.random.normal(table_key, (VOCABULARY, VOCABULARY)))
    optimizer = optax.adam(0.1)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    def logps(model, tokens):
        return token_logprobs(model(tokens[:, :-1]), tokens[:, 1:])

    @eqx.filter_jit
    def update(model, state, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = jax.random.randint(prompt_key, (PROMPTS,), 0, VOCABULARY)
        tokens = sample(model, jnp.repeat(prompts, GROUP), sample_key)
        scores = reward(tokens)
        advantages = group_advantages(scores, GROUP)
        old = logps(model, tokens)

        def loss(model):
            return sequence_mean(grpo_loss(logps(model, tokens), old, advantages), None)

        for _ in range(2):  # two passes over the same samples: the second is off-policy, and clipped
            gradient = eqx.filter_grad(loss)(model)
            changes, state = optimizer.update(gradient, state)
            model = eqx.apply_updates(model, changes)
        return model, state, scores.mean()

    curve = []
    for number in range(updates):
        model, state, mean = update(model, state, jax.random.fold_in(key, number))
        curve.append(float(mean))
    return curve


if __name__ == "__main__":
    rewards = train()
    print(f"mean reward {rewards[0]:.2f} -> {rewards[-1]:.2f}")
