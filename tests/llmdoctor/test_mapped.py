"""What a doctor says through a map: finite, and neutral to the tokens that the map has not."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.llmdoctor.mapped import Spoken, read, translated
from jaxalign.masking import NEGATIVE

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(3, 11)).astype(np.float32)
TERMS = RNG.normal(size=(3, 11)).astype(np.float32) * 2
KNOWN = np.arange(11) % 3 != 1
ALL = np.ones((3, 11), bool)


def neutral(terms=TERMS, *, base=BASE, known=KNOWN, plausible=ALL, weighed=True):
    made = Spoken(jnp.asarray(known), jnp.asarray(terms), jnp.asarray(weighed))
    return np.asarray(jax.jit(lambda base, plausible: made.neutral(base, plausible))(base, plausible))


def masses(x, where):
    return np.where(where, np.exp(x.astype(np.float64)), 0.0).sum(-1)


def test_known_and_unknown_keep_their_odds_also_under_a_cut():
    for plausible in (ALL, BASE > -0.5):
        found = BASE + neutral(plausible=plausible)
        odds = [masses(x, KNOWN & plausible) / masses(x, ~KNOWN & plausible) for x in (BASE, found)]
        assert (masses(BASE, ~KNOWN & plausible) > 0).all()
        np.testing.assert_allclose(odds[0], odds[1], rtol=1e-5)


def test_of_the_known_the_terms_are_left_as_they_are_and_the_unknown_share_one():
    found = neutral()
    np.testing.assert_array_equal(found[:, KNOWN], TERMS[:, KNOWN])
    assert (found[:, ~KNOWN] == found[:, ~KNOWN][:, :1]).all()
    assert (found[:, ~KNOWN][:, 0] <= TERMS[:, KNOWN].max(-1)).all()
    assert (found[:, ~KNOWN][:, 0] >= TERMS[:, KNOWN].min(-1)).all()


def test_a_constant_in_what_is_said_is_the_same_constant_everywhere():
    np.testing.assert_allclose(neutral(TERMS + 30), neutral() + 30, atol=1e-4)


def test_what_has_no_weight_adds_0_to_the_bit():
    assert not neutral(0 * TERMS, base=40 * BASE, weighed=False).any()
    # Whatever rounding makes of the two sums.
    assert not neutral(weighed=False)[:, ~KNOWN].any()


def test_nothing_infinite_makes_a_number_that_is_none():
    said = jnp.asarray([[np.inf, -np.inf, 0.0, np.nan]])
    finite = np.asarray(translated(said, jnp.asarray([0, 1, -1, 2]), 4))
    assert np.isfinite(finite).all() and finite[0, 3] == 0
    ruled_out = translated(jnp.full((1, 4), -jnp.inf), jnp.arange(4), 4)
    np.testing.assert_array_equal(2.0 * ruled_out - 2.0 * ruled_out, np.zeros((1, 4)))
    for terms in (np.full_like(TERMS, NEGATIVE), np.full_like(TERMS, -NEGATIVE), NEGATIVE * np.sign(TERMS)):
        assert np.isfinite(neutral(terms)).all()
    assert np.isfinite(neutral(base=np.full_like(BASE, -np.inf))).all()


def test_where_no_known_token_is_plausible_the_patient_decides():
    np.testing.assert_array_equal(neutral(plausible=ALL & ~KNOWN)[:, ~KNOWN], 0.0)


def test_a_map_is_read_token_by_token_and_what_it_has_not_as_unknown():
    part = {"vocabulary": jnp.asarray([4, -1, 0]), "unknown": jnp.int32(9)}
    assert read(jnp.asarray([[0, 1, 2, 0]]), part).tolist() == [[4, 9, 0, 4]]
    assert read(jnp.asarray([7]), {}).tolist() == [7]


def test_logits_are_found_by_the_map_and_cut_to_the_tokens_that_can_be_written():
    said = jnp.asarray([[1.0, 2.0, 3.0]])
    assert translated(said, jnp.asarray([2, 0, 1, 1]), 3).tolist() == [[3.0, 1.0, 2.0]]
    assert translated(said, None, 2).tolist() == [[1.0, 2.0]]
