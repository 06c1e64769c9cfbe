"""The table of preference losses: each is called with what it reads."""

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses, models
from jaxalign.config import describe, from_dict
from jaxalign.errors import ConfigError
from jaxalign.losses import PREFERENCE_LOSSES
from jaxalign.losses.preference import DELTA, LossSpec, Option, ScoredRows
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.preference.config import DPOLossConfig, loss_config, options_of
from jaxalign.training.preference.objectives import batch_statistics, passes_of, row_terms
from tests.training import cases

PAIRS = [name for name, spec in PREFERENCE_LOSSES.items() if not spec.unpaired]
COUPLED = [name for name, spec in PREFERENCE_LOSSES.items() if spec.statistic]
OPTIONS = options_of(PREFERENCE_LOSSES)


def config(name, **changes):
    return DPOLossConfig(name=name, **dict.fromkeys(PREFERENCE_LOSSES[name].required, 0.1) | changes)


def scored(seed=0, batch=8, valid=None) -> ScoredRows:
    rng = np.random.default_rng(seed)
    ref = -5 * rng.exponential(size=(batch, 2))
    logps = ref + rng.standard_normal((batch, 2))
    return ScoredRows(
        jnp.asarray(logps, jnp.float32),
        jnp.asarray(ref, jnp.float32),
        jnp.tile(jnp.asarray([True, False]), (batch, 1)),
        jnp.ones(batch, bool) if valid is None else jnp.asarray(valid),
        jnp.asarray(rng.standard_normal((batch, 2)) + 0.5, jnp.float32),
    )


def terms(rows, settings):
    return row_terms(rows, settings, batch_statistics(rows, settings))


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_a_record_says_what_its_function_takes(name):
    spec = PREFERENCE_LOSSES[name]
    parameters = inspect.signature(spec.function).parameters.values()
    given = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(spec.arguments) == len(given)
    assert spec.means == any("mean_logps" in name for name in given)
    assert spec.reference == any("ref_" in name for name in given)
    named = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options = {option.name: option.default for option in spec.options}
    assert named.keys() == {"beta", *options, *(spec.statistic.axes if spec.statistic else ())}
    assert all(named[key] in (value, inspect.Parameter.empty) for key, value in options.items())


def test_a_loss_that_joins_the_table_can_be_configured_and_is_called():
    """With nothing but its record: its name, its option with default, range and help, and its terms."""

    def shifted_loss(chosen, rejected, *, beta, shift):
        return beta * (rejected - chosen) + shift

    shift = Option(name="shift", default=2.0, meaning="added to each loss", low=0.0)
    table = {
        **PREFERENCE_LOSSES,
        "shifted": LossSpec(shifted_loss, (shift,), reference=False, sft_weight=0.5),
    }
    keys = {key.name: key for key in describe(loss_config(table))}
    assert keys["name"].type.endswith("shifted") and keys["shift"].default == "2.0"
    assert keys["shift"].meaning == "added to each loss (shifted)."
    assert "without a reference: simpo, cpo, alphapo, orpo, shifted" in keys["name"].meaning
    assert "cpo, orpo, shifted" in keys["sft_weight"].meaning
    settings = from_dict(loss_config(table), {"name": "shifted", "shift": 1.0})
    assert settings.supervised_weight == 0.5
    rows = scored()
    np.testing.assert_allclose(
        terms(rows, settings), 0.1 * (rows.logps[:, 1] - rows.logps[:, 0]) + 1, rtol=1e-6
    )
    with pytest.raises(ConfigError, match=r"loss\.shift must not be negative, got -1"):
        from_dict(loss_config(table), {"name": "shifted", "shift": -1.0})
    with pytest.raises(ConfigError, match=r"loss\.shift is not used by loss\.name=dpo; leave it at 2"):
        from_dict(loss_config(table), {"name": "dpo", "shift": 1.0})


def test_two_options_of_one_name_are_refused():
    other = LossSpec(losses.dpo_loss, (Option(name="tau", default=0.1, meaning=""),))
    with pytest.raises(ValueError, match="another loss has a different option tau"):
        options_of({**PREFERENCE_LOSSES, "other": other})


# DiscoPOP was found by search and is not monotone: at the reference itself it points the other way.
@pytest.mark.parametrize("name", sorted(set(PREFERENCE_LOSSES) - {"discopop"}))
def test_descent_makes_the_chosen_likelier_than_the_rejected(name):
    start = scored()
    start = replace(start, logps=start.ref_logps, kl_ratio=jnp.zeros_like(start.kl_ratio))
    slope = jax.grad(lambda logps: terms(replace(start, logps=logps), config(name)).sum())(start.logps)
    assert slope[:, 0].sum() < slope[:, 1].sum()


@pytest.mark.parametrize("name", PAIRS)
def test_the_term_of_a_pair_is_the_public_loss(name):
    rows, settings = scored(), config(name)
    four = [rows.logps[:, 0], rows.logps[:, 1], rows.ref_logps[:, 0], rows.ref_logps[:, 1]]
    spec = PREFERENCE_LOSSES[name]
    options = {option.name: getattr(settings, option.name) for option in spec.options}
    if spec.statistic == DELTA:
        options["delta"] = float(0.1 * jnp.mean(rows.logps - rows.ref_logps))
    expected = spec.function(*(four if spec.reference else four[:2]), beta=0.1, **options)
    np.testing.assert_allclose(terms(rows, settings), expected, rtol=1e-6)


def test_an_unpaired_loss_of_pairs_is_the_mean_of_both_completions():
    rows, settings = scored(), config("kto", desirable_weight=2.0)
    kl = losses.kto_kl(rows.kl_ratio.ravel(), jnp.zeros(16))
    assert kl > 0
    options = {"beta": 0.1, "kl": kl, "desirable_weight": 2.0}
    chosen, rejected = (
        losses.kto_loss(rows.logps[:, side], rows.ref_logps[:, side], jnp.full(8, side == 0), **options)
        for side in (0, 1)
    )
    np.testing.assert_allclose(terms(rows, settings), (chosen + rejected) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", COUPLED)
def test_parts_with_the_whole_batchs_statistics_equal_the_whole(name):
    rows, settings = scored(), config(name)
    statistics = batch_statistics(rows, settings)
    whole = row_terms(rows, settings, statistics)
    for part in (slice(0, 4), slice(4, 8)):
        some = jax.tree.map(lambda x, part=part: x[part], rows)
        given = {n: x[part] if x.ndim else x for n, x in statistics.items()}
        np.testing.assert_allclose(row_terms(some, settings, given), whole[part], rtol=1e-6)


@pytest.mark.parametrize("name", COUPLED)
def test_filler_rows_do_not_change_the_statistics(name):
    settings = config(name)
    whole = scored(valid=np.arange(8) < 6)
    kept = jax.tree.map(lambda x: x[:6], whole)
    np.testing.assert_allclose(terms(whole, settings)[:6], terms(kept, settings), rtol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_a_loss_does_not_read_is_refused(option):
    value = "alpha" if option == "divergence" else 0.25
    name = next(n for n, spec in PREFERENCE_LOSSES.items() if OPTIONS[option] not in spec.options)
    with pytest.raises(ValueError, match=rf"loss\.{option} is not used by loss\.name={name}"):
        config(name, **{option: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "exo"}, "exo needs loss.label_smoothing above 0"),
        ({"name": "dop"}, "loss.name must be one of dpo, robust"),
        ({"label_smoothing": 0.5}, r"loss.label_smoothing must lie in \[0, 0.5\), got 0.5"),
        ({"name": "simpo", "gamma": -0.1}, "loss.gamma must not be negative, got -0.1"),
        ({"name": "discopop", "tau": 0.0}, "loss.tau must be positive, got 0"),
        ({"length_alpha": 1.5}, "loss.length_alpha must lie in"),
        ({"name": "kto", "weighted": True}, "need pairs"),
        ({"name": "simpo", "length_normalize": True}, "not used by loss.name=simpo"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DPOLossConfig(**changes)


def test_precomputed_log_probs_spare_the_references_pass():
    policy, reference = CausalPolicy(models.Definition(cases.shape())), models.Definition(cases.shape())

    def frozen(**options):
        passes = passes_of(policy, reference, DPOLossConfig(), **options)
        return [each.prefix for each in passes if each.learns == "nothing"]

    assert frozen(precomputed=False) == ["kl_", "", "kl_"]
    assert frozen(precomputed=True) == ["kl_"]
