"""The loss of a TFPO step, against its definition in float64; what is compared, what is pinned, what is counted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import models
from jaxalign.llmdoctor import tfpo_step
from jaxalign.llmdoctor.tfpo_config import PRESETS, GuidanceDefaults, TFPOConfig, TFPOLossConfig
from jaxalign.llmdoctor.tfpo_step import TFPOBatch, last_tokens, pair_weights, rival_tokens, value_gaps
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core import setup
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from tests.training.cases import KEY, shape, tfpo_case

LORA = LoraConfig(enabled=True, rank=2)
EVERYTHING = TFPOLossConfig(
    reduction="batch_pairs",
    reference_weight=0.5,
    decay=0.8,
    window=4,
    margin=2.0,
    value_weight=3.0,
    equal_depth_pairs=2,
    reward_scale=1.7,
)
LOSSES = {
    "paper": TFPOLossConfig(margin=2.0),
    "paper_literal": TFPOLossConfig(preset="paper_literal"),
    "tilted": TFPOLossConfig(preset="tilted"),
    "everything": EVERYTHING,
}


@jax.jit
def states(params, tokens):
    """Hidden states after each token and logits, of each row for itself."""
    model = models.merge(models.Definition(shape()), params)
    hidden = model.hidden(tokens)
    return hidden, model.logits(hidden)


def log_probs(model, rows):
    """float64 [N, T - 1] log-probs of the tokens from 1 on, and the hidden state after each token.

    What is in the padding, after a row, cannot change what comes before it.
    """
    hidden, logits = (np.asarray(x, np.float64) for x in states(model.params, rows.reshape(-1, 12)))
    logits = logits[:, :-1] - logits[:, :-1].max(2, keepdims=True)
    normal = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    chosen = np.take_along_axis(normal, rows.reshape(-1, 12)[:, 1:, None], axis=2)[..., 0]
    return chosen.reshape(*rows.shape[:2], -1), hidden.reshape(*rows.shape, -1)


def definition(trained, frozen, batch, numbers, lora, ramp):
    """The loss of a batch, response by response and pair by pair."""
    plain = models.Definition(shape())
    doctor = models.merge(plain, frozen["base"] if lora.enabled else trained["policy"])
    if lora.enabled:
        doctor = models.merge_adapter(doctor, models.attach(trained["policy"], lora))
    reference = models.merge(plain, frozen["reference"])
    score = np.asarray(trained["value"]["head"]["score"], np.float64)
    all_logps, all_hidden = log_probs(doctor, batch["tokens"])
    all_ref_logps, _ = log_probs(reference, batch["tokens"])
    sums, weights, hinges, pairs = [], [], [], 0
    for b in np.flatnonzero(batch["valid"]):
        pairs += 1
        values, starts = [], []
        for g in (0, 1):
            end = int(batch["lengths"][b, g])
            start = int(np.argmax(batch["mask"][b, g]))
            logps, ref_logps = (x[b, g, start - 1 : end - 1] for x in (all_logps, all_ref_logps))
            length = end - start
            # State i: before token start + i, read off the hidden state one before.
            v = all_hidden[b, g, start - 1 : end] @ score + ramp * (
                float(frozen["horizon"]) - np.arange(length + 1)
            )
            values.append(v.copy())
            starts.append(start)
            if numbers.pin_terminal and batch["terminated"][b, g]:
                v[-1] = 0.0
            gains = numbers.reward_scale * batch["rewards"][b, g, start:end].astype(np.float64)
            gains = gains + numbers.reference_weight * ref_logps
            total = weight = 0.0
            for m in range(length + 1):
                for n in range(m + 1, min(m + (numbers.window or length), length) + 1):
                    e = v[n] - v[m] + gains[m:n].sum() - logps[m:n].sum()
                    total += numbers.decay ** (n - m) * e**2
                    weight += numbers.decay ** (n - m)
            sums.append(total)
            weights.append(weight)
        assert starts[0] == starts[1]
        hinges += hinges_of(batch, b, starts[0], values, numbers)
    if numbers.reduction == "batch_pairs":
        balance = sum(sums) / sum(weights)
    else:
        rows = sums if numbers.reduction == "sum" else np.divide(sums, weights)
        balance = sum(rows) / (2 * pairs)
    return balance + numbers.value_weight * (np.mean(hinges) if hinges else 0.0)


def hinges_of(batch, b, start, values, numbers):
    """The hinge where the responses part, and at equal depths after it; no state may be terminal."""
    lengths = batch["lengths"][b] - start
    last = lengths - batch["terminated"][b]  # the last state that is not
    tokens, rewards = (batch[name][b][:, start:] for name in ("tokens", "rewards"))
    common = range(min(lengths))
    part = next((i for i in common if tokens[0, i] != tokens[1, i]), None)
    if part is None:
        return []
    free = [i for i in common if i >= part and i + 1 <= min(last)]
    chosen = [i for i in free if i == part]
    later = [i for i in free if i > part and rewards[0, i] > 0 and rewards[1, i] < 0]
    chosen += later[: numbers.equal_depth_pairs]
    return [max(0.0, numbers.margin - (values[0][i + 1] - values[1][i + 1])) for i in chosen]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "lora", "packing"),
    [
        ("paper", LoraConfig(), False),
        ("paper_literal", LoraConfig(), False),
        ("tilted", LORA, False),
        ("everything", LoraConfig(), True),
    ],
    ids=["paper", "paper_literal", "tilted-lora", "everything-packed"],
)
def test_the_loss_is_its_definition_in_float64(name, lora, packing, devices):
    config, mesh = LOSSES[name], make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = tfpo_case(mesh, config, lora)
    numbers, columns = config.resolved(), batch.columns()
    placed = setup.on_mesh(columns, TFPOBatch, mesh, packing=packing)
    assert (placed.packing.flat_indices is not None) == packing
    function = jax.jit(
        jax.value_and_grad(lambda params: loss(params, frozen, placed, None, counts(placed))[0])
    )
    value, gradient = function(trained)
    ramp = float(trained["value"]["ramp"])
    at = [definition(trained, frozen, columns, numbers, lora, ramp + step) for step in (-1e-4, 0, 1e-4)]
    np.testing.assert_allclose(value, at[1], rtol=1e-4)
    np.testing.assert_allclose(gradient["value"]["ramp"], (at[2] - at[0]) / 2e-4, rtol=1e-3)
    assert at[1] > 0.1


@pytest.mark.long
def test_micro_batches_add_up_to_the_batch(devices):
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = tfpo_case(mesh, EVERYTHING)
    sgd = optax.sgd(1.0)
    found = []
    for parts in (1, 4):
        update = make_update(loss, counts, sgd, accumulation_steps=parts)
        placed = setup.on_mesh(batch.columns(), TFPOBatch, mesh, packing=True, num_microbatches=parts)
        state, metrics = update(create_state(trained, sgd), frozen, placed, KEY)
        found.append((metrics, state.params))
    assert found[0][0].keys() == found[1][0].keys()
    for name, value in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found[0][1], found[1][1])


@pytest.mark.parametrize(("kappa", "passes"), [(0.0, 0), (0.5, 1)])
def test_the_reference_is_run_only_where_the_target_holds_it(kappa, passes, devices, monkeypatch):
    seen, plain = [], tfpo_step.score_tokens
    monkeypatch.setattr(tfpo_step, "score_tokens", lambda *a, **k: seen.append(1) or plain(*a, **k))
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = tfpo_case(mesh, TFPOLossConfig(reference_weight=kappa))
    if not kappa:
        frozen = frozen | {"reference": {}}
    placed = setup.on_mesh(batch.columns(), TFPOBatch, mesh)
    jax.eval_shape(lambda params: loss(params, frozen, placed, None, counts(placed)), trained)
    assert len(seen) == passes


@pytest.mark.parametrize(("decay", "window"), [(1.0, 0), (0.7, 0), (1.0, 2), (0.7, 3)])
def test_pair_weights_are_counted_pair_by_pair(decay, window):
    numbers = TFPOLossConfig(decay=decay, window=window).resolved()
    lengths = np.asarray([0, 1, 2, 7])
    mask = jnp.asarray(np.arange(9) < lengths[:, None])
    expected = [
        sum(
            decay ** (n - m)
            for m in range(length + 1)
            for n in range(m + 1, length + 1)
            if n - m <= (window or length)
        )
        for length in lengths
    ]
    np.testing.assert_allclose(pair_weights(mask, numbers), expected, rtol=1e-6)


def pair(chosen, rejected, *, prompt="pp", ends=(True, True), rewards=None):
    """A batch of one pair of strings, a letter a token."""
    width, rows = 10, [prompt + chosen, prompt + rejected]
    tokens = np.asarray([[ord(c) for c in row.ljust(width)] for row in rows])
    lengths = np.asarray([len(row) for row in rows])
    columns = np.arange(width)
    given = np.zeros((2, width), np.float32)
    for side, values in enumerate(rewards or ()):
        given[side, len(prompt) : len(prompt) + len(values)] = values
    batch = {
        "tokens": tokens,
        "lengths": lengths,
        "mask": (columns >= len(prompt)) & (columns < lengths[:, None]),
        "terminated": np.asarray(ends),
        "rewards": given,
        "valid": np.asarray(True),
    }
    return TFPOBatch.of({name: jnp.asarray(x)[None] for name, x in batch.items()})


def columns(flags):
    return np.flatnonzero(np.asarray(flags)[0]).tolist()


def test_values_are_compared_where_two_responses_part():
    first, more = rival_tokens(pair("abcx.", "abdx."), 0)
    assert (columns(first), columns(more)) == ([4], [])


@pytest.mark.parametrize(
    ("chosen", "rejected", "ends"),
    [
        ("ab.", "abc.", (True, True)),  # one goes on where the other ends: its state is terminal
        ("ab.", "ab.", (True, True)),  # the same
        ("ab", "abc", (False, False)),  # one is cut where the other goes on: it has no token there
        ("b", "c", (True, True)),  # both end at once
    ],
)
def test_values_are_not_compared_where_one_response_has_no_open_state(chosen, rejected, ends):
    first, more = rival_tokens(pair(chosen, rejected, ends=ends), 9)
    assert (columns(first), columns(more)) == ([], [])


def test_cut_responses_may_part_at_their_last_token():
    first, _ = rival_tokens(pair("b", "c", ends=(False, False)), 0)
    assert columns(first) == [2]


@pytest.mark.parametrize(("most", "expected"), [(0, []), (1, [4]), (9, [4, 6])])
def test_equal_depths_are_compared_behind_the_parting_where_signs_differ_and_no_state_is_terminal(
    most, expected
):
    # Columns 2 (before they part), 4 and 6 have the signs; 8 too, but rejected ends there.
    rewards = [[1, 0, 1, 1, 1, 0, 1, 0], [-1, 0, -1, 1, -1, 0, -1]]
    batch = pair("abcdefgh", "aBcdefg", rewards=rewards)
    first, more = rival_tokens(batch, most)
    assert (columns(first), columns(more)) == ([3], expected)
    assert [columns(last_tokens(batch)[:, g]) for g in (0, 1)] == [[9], [8]]


def test_pairs_that_do_not_count_are_not_compared():
    batch = replace(pair("abc.", "abd."), valid=jnp.asarray([False]))
    assert not rival_tokens(batch, 9)[0].any()


def test_value_gaps_are_at_the_same_depth_of_both_and_before_the_end():
    batch = pair("abcde", "xyzwvut", ends=(True, False))
    values = jnp.stack([jnp.arange(11.0) ** 2, jnp.arange(11.0)])[None]
    gaps = {name: float(a / b) for name, (a, b) in value_gaps(values, batch).items()}
    # Four open states after the first of the shorter; depth d is column 2 + d.
    expected = {share: (2 + d) ** 2 - (2 + d) for share, d in ((25, 1), (50, 2), (75, 3), (100, 4))}
    assert gaps == {f"value_gap_{share}": value for share, value in expected.items()}


def test_presets_decide_what_is_null_and_explicit_values_win():
    found = {name: TFPOLossConfig(preset=name).resolved() for name in PRESETS}
    decided = {
        name: (x.reference_weight, x.pin_terminal, x.reduction, x.value_weight) for name, x in found.items()
    }
    assert decided == {
        "paper": (0.0, True, "mean", 0.1),
        "paper_literal": (0.0, False, "sum", 0.1),
        "tilted": (1.0, True, "mean", 0.1),
        "repo": (0.0, True, "mean", 1.0),
    }
    mine = TFPOLossConfig(preset="tilted", reference_weight=0.0, pin_terminal=False).resolved()
    assert (mine.reference_weight, mine.pin_terminal) == (0.0, False)
    forms = {name: GuidanceDefaults().resolved(name) for name in PRESETS}
    assert {n: (f["guidance"], f["alpha"], f["beta"]) for n, f in forms.items()} == {
        "paper": ("product", 1.0, 1.0),
        "paper_literal": ("product", 1.0, 1.0),
        "tilted": ("ratio", 1.0, 1.0),
        "repo": ("product", 1.0, 0.5),
    }
    given = GuidanceDefaults(form="product", beta=0.0).resolved("tilted")
    assert given == {"guidance": "product", "alpha": 1.0, "beta": 0.0}


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TFPOLossConfig(decay=0.0), "loss.decay"),
        (lambda: TFPOLossConfig(reward_scale=-1.0), "loss.reward_scale"),
        (lambda: TFPOLossConfig(reference_weight=-0.5), "loss.reference_weight"),
        (lambda: TFPOLossConfig(window=-1), "loss.window"),
        (lambda: TFPOLossConfig(margin=-0.1), "loss.margin"),
        (lambda: TFPOLossConfig(value_weight=float("inf")), "loss.value_weight"),
        (lambda: TFPOLossConfig(equal_depth_pairs=-2), "loss.equal_depth_pairs"),
        (lambda: TFPOLossConfig(value_ramp=float("inf")), "loss.value_ramp"),
        (lambda: GuidanceDefaults(alpha=-1.0), "guidance.alpha"),
        (lambda: GuidanceDefaults(beta=-1.0), "guidance.beta"),
        (lambda: TFPOConfig(head_learning_rate=-1.0), "head_learning_rate"),
    ],
)
def test_numbers_out_of_range_name_their_key(make, key):
    with pytest.raises(ValueError, match=f"^{key} must"):
        make()


def test_a_filler_row_changes_nothing(devices):
    mesh = make_mesh(MeshConfig(), devices[:1])
    loss, counts, trained, frozen, batch = tfpo_case(mesh, EVERYTHING)
    changed = jax.tree.map(np.array, batch)
    filler = int(np.flatnonzero(~batch.valid)[0])
    changed.tokens[filler] = 7
    changed.rewards[filler] = 1e6
    run = jax.jit(lambda placed: loss(trained, frozen, placed, None, counts(placed)))
    values = [run(placed) for placed in (shard_batch(x, mesh) for x in (batch, changed))]
    np.testing.assert_array_equal(values[0][0], values[1][0])
    jax.tree.map(np.testing.assert_array_equal, values[0][1], values[1][1])
