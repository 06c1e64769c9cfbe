"""Where packing puts rows of tokens, and in how many shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import packed, packed_alike, with_loss_positions
from jaxalign.data.packing import MAX_SEGMENTS, best_fit_decreasing, end_to_end, segments
from jaxalign.training.core.step import split_rows

WIDTH = 16


def batch(lengths, *, seed=0, **more):
    """Rows of different tokens, the first one of a row not loss_positions, the others by chance."""
    lengths = np.asarray(lengths, np.int32)
    rng, columns = np.random.default_rng(seed), np.arange(WIDTH)
    inside = columns < lengths[..., None]
    mask = inside & (columns > 0) & (rng.random(inside.shape) < 0.5)
    tokens = np.where(inside, np.arange(inside.size).reshape(inside.shape), -1)
    return {"tokens": tokens, "mask": mask, "lengths": lengths, **more}


def read(found, name="tokens"):
    """What lies in each column of the packed rows; -1 in padding."""
    return np.append(found[name].ravel(), -1)[found["packed"]]


@settings(deadline=None)
@given(st.lists(st.integers(0, WIDTH), max_size=40))
def test_every_length_lies_in_one_row_that_holds_it_and_no_two_rows_would_fit_in_one(lengths):
    rows = best_fit_decreasing(lengths, WIDTH)
    assert sorted(i for row in rows for i in row) == [i for i, n in enumerate(lengths) if n]
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert not filled or filled[-1] <= WIDTH
    assert len(filled) < 2 or filled[0] + filled[1] > WIDTH


def test_the_fullest_row_with_room_is_taken():
    # After 9, 7 and 8 the rooms are 0 (9 + 7) and 8; of rooms 3 and 8 a 3 takes the 3.
    assert best_fit_decreasing([9, 8, 7], WIDTH) == [[0, 2], [1]]
    assert best_fit_decreasing([13, 8, 3], WIDTH) == [[0, 2], [1]]


def test_no_row_holds_more_than_the_most():
    assert [len(row) for row in best_fit_decreasing([1] * 10, 16, 4)] == [4, 4, 2]
    # The second row is full by number, not by tokens: what is left of it is not filled.
    assert best_fit_decreasing([9, 8, 3, 2, 1], 12, 2) == [[0, 2], [1, 3], [4]]
    assert {len(row) for row in best_fit_decreasing([1] * 320, 64)} == {MAX_SEGMENTS}


def test_rows_lie_end_to_end_each_a_segment_with_positions_of_its_own():
    places = end_to_end([2, 3, 1], [[1, 0], [2]], 5, 3)
    padding = 15
    assert places.tolist() == [[5, 6, 7, 0, 1], [10, *[padding] * 4], [padding] * 5]
    for where in (places, jnp.asarray(places)):
        found = segments(where, padding, 5)
        assert found["positions"].tolist() == [[0, 1, 2, 0, 1], [0] * 5, [0] * 5]
        assert found["segment_ids"].tolist() == [[2, 2, 2, 1, 1], [3, 0, 0, 0, 0], [0] * 5]
        assert {x.dtype for x in found.values()} == {np.dtype(np.int32)}


def test_packed_rows_are_dealt_out_to_shards():
    places = end_to_end([4, 4, 4], [[0], [1], [2]], 4, 4, 2)
    assert (places[:, 0] // 4).tolist() == [0, 2, 1, 3]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="17 tokens does not fit rows of 16"):
        best_fit_decreasing([17], WIDTH)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, WIDTH), min_size=1, max_size=30), st.sampled_from([1, 2, 4]))
def test_each_token_lies_once_in_one_piece_and_each_counted_one_has_its_head(lengths, shards):
    rows = batch(lengths)
    found = packed(rows, shards=shards)
    there = read(found)
    assert found["packed"].shape[0] % shards == 0
    np.testing.assert_array_equal(np.sort(there[there >= 0]), np.sort(rows["tokens"][rows["tokens"] >= 0]))
    places = found["packed"]
    inside = places < rows["tokens"].size
    follows = inside[:, 1:] & (places[:, 1:] % WIDTH > 0)
    # Column t > 0 of a row follows its column t - 1, and column 0 follows another row's last one.
    np.testing.assert_array_equal((places[:, 1:] - places[:, :-1])[follows], 1)
    heads = places.reshape(shards, -1)
    predicted = [heads[s, c] + 1 for s in range(shards) for c in found["loss_positions"][s] if c >= 0]
    np.testing.assert_array_equal(np.sort(predicted), np.flatnonzero(rows["mask"]))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, WIDTH), min_size=1, max_size=30),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 4, 8]),
)
def test_each_part_of_the_columns_has_the_heads_of_its_own_tokens(lengths, shards, parts):
    rows = batch(lengths)
    found = packed(rows, shards=shards, length_shards=parts)
    assert found["loss_positions"].shape[:2] == (shards, parts)
    height, width = len(found["packed"]) // shards, WIDTH // parts
    predicted = []
    for shard, part in np.ndindex(shards, parts):
        own = found["packed"][
            shard * height : (shard + 1) * height, part * width : (part + 1) * width
        ].ravel()
        predicted += [own[c] + 1 for c in found["loss_positions"][shard, part] if c >= 0]
    np.testing.assert_array_equal(np.sort(predicted), np.flatnonzero(rows["mask"]))


def test_columns_that_do_not_divide_have_their_heads_together():
    rows = batch([5, 9, 16])
    assert packed(rows, length_shards=32)["loss_positions"].ndim == 2
    alike = packed_alike([rows, batch([16, 16, 16])], length_shards=4)
    assert len({one["loss_positions"].shape for one in alike}) == 1 and alike[0]["loss_positions"].ndim == 3


def test_a_micro_batch_of_a_packed_batch_is_the_packed_micro_batch():
    rng = np.random.default_rng(1)
    rows = batch(rng.integers(1, WIDTH + 1, (8, 2)))
    whole, cut = packed(rows, num_microbatches=4, shards=2), split_rows(4)
    for part in range(4):
        piece = {name: np.asarray(cut(value)[part]) for name, value in whole.items()}
        alone = packed({name: piece[name] for name in rows}, shards=2)
        np.testing.assert_array_equal(
            np.sort(read(piece)[read(piece) >= 0]), np.sort(read(alone)[read(alone) >= 0])
        )
        # Packed for itself, it may have fewer rows than the largest of its fellows.
        height = len(alone["packed"])
        assert height <= len(piece["packed"])


def test_full_rows_stay_as_many():
    for count in (1, 9, 11, 30):
        found = packed(batch([WIDTH] * count))
        assert found["packed"].shape == (count, WIDTH)
        np.testing.assert_array_equal(
            np.sort(found["packed"], axis=0), np.arange(count * WIDTH).reshape(count, WIDTH)
        )


def test_filler_rows_are_left_out():
    lengths = [5, 6, 7, 8]
    found = packed(batch(lengths, valid=np.asarray([True, False, True, False])))
    assert set(np.unique(found["packed"] // WIDTH)) == {0, 2, 4}
    nothing = packed(batch(lengths, valid=np.zeros(4, bool)))
    assert (nothing["packed"] == 4 * WIDTH).all()
    assert (nothing["loss_positions"] == -1).all()


def test_mismatched_rows_are_packed_too_and_heads_only_where_asked():
    rows = batch([4, 5])
    more = rows | {f"kl_{name}": value for name, value in batch([9, 16]).items()}
    added = set(packed(more)) - set(more)
    assert added == {"packed", "loss_positions", "kl_packed", "kl_loss_positions"}
    assert set(packed(more, loss_positions=False)) - set(more) == {"packed", "kl_packed"}


@pytest.mark.parametrize(
    ("examples", "parts", "shards", "pieces"), [(8, 1, 1, 1), (8, 2, 4, 4), (6, 2, 2, 1)]
)
def test_heads_of_padded_rows_stand_before_the_counted_tokens(examples, parts, shards, pieces):
    lengths = np.random.default_rng(0).integers(1, WIDTH + 1, (examples, 2))
    valid = np.arange(examples) != 1
    rows = batch(lengths, valid=valid)
    found = with_loss_positions(rows, num_microbatches=parts, shards=shards)
    assert set(found) - set(rows) == {"loss_positions"}
    # Three examples a micro-batch do not go onto two devices, so their heads are not cut up.
    assert len(found["loss_positions"]) == parts * pieces
    heads = split_rows(parts)(found["loss_positions"])
    for part in range(parts):
        mask = (rows["mask"] & valid[:, None, None])[part::parts].reshape(-1, WIDTH)
        size = mask.size // pieces
        predicted = [p * size + c + 1 for p in range(pieces) for c in heads[part][p] if c >= 0]
        assert predicted == np.flatnonzero(mask).tolist()


def test_where_nearly_all_columns_count_the_head_is_applied_to_all():
    rows = batch([WIDTH] * 4)
    rows["mask"] = np.arange(WIDTH) > 2 + np.zeros((4, 1))  # 13 of 16
    assert set(with_loss_positions(rows)) == set(rows)
    rows["mask"] = np.arange(WIDTH) > 3 + np.zeros((4, 1))  # 12 of 16, three quarters
    assert with_loss_positions(rows)["loss_positions"].shape == (1, 48)


def test_by_their_moments_batches_have_one_number_of_heads():
    rng = np.random.default_rng(0)
    plain, alike = set(), []
    for seed in range(200):
        rows = batch(rng.integers(4, WIDTH + 1, 16), seed=seed)  # 4.5 tokens count on average
        plain.add(with_loss_positions(rows)["loss_positions"].shape)
        alike.append(
            with_loss_positions(rows | {"loss_token_moments": (4.5, 2.4)})["loss_positions"].shape[1]
        )
    assert len(plain) > 1
    assert alike.count(max(alike)) >= 199
    assert max(alike) <= 128  # half of the columns


@pytest.mark.parametrize("loss_positions", [True, False])
def test_batches_packed_alike_have_as_many_rows_and_heads_and_each_its_own_tokens(loss_positions):
    batches = [batch(lengths) for lengths in ([16] * 8, [3] * 8, [9, 8] * 4)]
    found = packed_alike(batches, num_microbatches=2, shards=2, loss_positions=loss_positions)
    assert {len(one["packed"]) for one in found} == {8}
    assert (
        len({one["loss_positions"].shape for one in found}) == 1
        if loss_positions
        else "loss_positions" not in found[0]
    )
    for one, rows in zip(found, batches, strict=True):
        if loss_positions:
            assert (one["loss_positions"] >= 0).sum() == rows["mask"].sum()
        for part, places in enumerate(split_rows(2)(one["packed"])):
            tokens = rows["tokens"][part::2]
            there = np.append(tokens.ravel(), -1)[places]
            np.testing.assert_array_equal(np.sort(there[there >= 0]), np.sort(tokens[tokens >= 0]))


def test_hundreds_of_batches_have_few_shapes_and_little_padding():
    rng = np.random.default_rng(0)
    shapes, tokens, slots = set(), 0, 0
    for seed in range(300):
        # Long-tailed as lengths of chats are; prompts take a varying part.
        lengths = np.clip(rng.lognormal(1.5, 0.6, 32), 2, WIDTH).astype(int)
        rows = batch(lengths, seed=seed)
        found = packed(rows)
        shapes.add((found["packed"].shape, found["loss_positions"].shape))
        tokens, slots = tokens + lengths.sum(), slots + found["packed"].size
    assert len(shapes) <= 20
    assert tokens / slots > 0.85
