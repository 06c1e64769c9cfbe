"""KTO of a Flax Linen model on labelled completions: the loss takes log-probs, whatever made them.

Run: python examples/kto_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxalign.logprobs import token_logprobs
from jaxalign.losses import kto_kl, kto_loss

VOCABULARY, LENGTH, ROWS = 10, 6, 256


class Bigram(nn.Module):
    """Next-token logits from the token before, through a small hidden layer."""

    @nn.compact
    def __call__(self, tokens):
        hidden = nn.Embed(VOCABULARY, 16)(tokens)
        return nn.Dense(VOCABULARY)(nn.tanh(nn.Dense(32)(hidden)))


def labelled(key):
    """Token ids [ROWS, LENGTH] and labels [ROWS]: rising sequences are to be imitated, falling ones are not."""
    start_key, label_key = jax.random.split(key)
    start = jax.random.randint(start_key, (ROWS, 1), 0, VOCABULARY)
    desirable = jax.random.bernoulli(label_key, 0.5, (ROWS,))
    direction = jnp.where(desirable, 1, -1)[:, None]
    return (start + direction * jnp.arange(LENGTH)) % VOCABULARY, desirable


def train(steps=200, seed=0):
    """Returns the losses, and the mean log-ratio to the reference of held-out desirable and undesirable rows."""
    model = Bigram()
    init_key, data_key, test_key = jax.random.split(jax.random.key(seed), 3)
    tokens, desirable = labelled(data_key)
    reference = params = model.init(init_key, tokens)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    def logps(params, tokens):
        return token_logprobs(model.apply(params, tokens[:, :-1]), tokens[:, 1:]).sum(axis=1)

    def loss(params):
        # The KL estimate wants mismatched pairs; here each first token with the continuation of the next row.
        others = jnp.concatenate([tokens[:, :1], jnp.roll(tokens, 1, axis=0)[:, 1:]], axis=1)
        kl = kto_kl(logps(params, others), logps(reference, others))
        return kto_loss(logps(params, tokens), logps(reference, tokens), desirable, beta=0.1, kl=kl).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state, value

    losses = []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    tokens, desirable = labelled(test_key)
    ratio = logps(params, tokens) - logps(reference, tokens)
    return losses, float(ratio[desirable].mean()), float(ratio[~desirable].mean())


if __name__ == "__main__":
    curve, good, bad = train()
    print(
        f"loss {curve[0]:.4f} -> {curve[-1]:.4f}; held-out log-ratio: desirable {good:+.2f}, undesirable {bad:+.2f}"
    )
