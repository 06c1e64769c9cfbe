"""DPO of a model in plain JAX: nothing of jaxalign but its losses.

A bigram model (a table of logits) learns to prefer rising sequences to falling ones, against a frozen copy of itself.
Run: python examples/dpo_plain_jax.py
"""

import jax
import jax.numpy as jnp
import optax

from jaxalign.logprobs import token_logprobs
from jaxalign.losses import dpo_loss

VOCABULARY, LENGTH, PAIRS = 10, 6, 256


def pairs(key):
    """Token ids [PAIRS, LENGTH]: rising by one (chosen) and falling by one (rejected) from the same start."""
    start = jax.random.randint(key, (PAIRS, 1), 0, VOCABULARY)
    steps = jnp.arange(LENGTH)
    return (start + steps) % VOCABULARY, (start - steps) % VOCABULARY


def sequence_logps(table, tokens):
    """log p of each sequence given its first token, in nats: [B]."""
    logits = table[tokens[:, :-1]]
    return token_logprobs(logits, tokens[:, 1:]).sum(axis=1)


def loss(table, reference, chosen, rejected):
    four = (sequence_logps(t, tokens) for t in (table, reference) for tokens in (chosen, rejected))
    return dpo_loss(*four, beta=0.1).mean()


def train(steps=200, seed=0):
    """Returns the losses, and the part of held-out pairs whose chosen sequence became the likelier one."""
    table_key, data_key, test_key = jax.random.split(jax.random.key(seed), 3)
    table = 0.1 * jax.random.normal(table_key, (VOCABULARY, VOCABULARY))
    reference, optimizer = table, optax.adam(0.05)
    state = optimizer.init(table)
    chosen, rejected = pairs(data_key)

    @jax.jit
    def step(table, state):
        value, gradient = jax.value_and_grad(loss)(table, reference, chosen, rejected)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(table, changes), state, value

    losses = []
    for _ in range(steps):
        table, state, value = step(table, state)
        losses.append(float(value))
    better, worse = (sequence_logps(table, tokens) for tokens in pairs(test_key))
    return losses, float((better > worse).mean())


if __name__ == "__main__":
    curve, accuracy = train()
    print(f"loss {curve[0]:.4f} -> {curve[-1]:.4f}, held-out accuracy {accuracy:.2f}")
