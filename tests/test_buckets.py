"""Buckets of sizes."""

import itertools

from jaxalign.buckets import STEP, WIDTHS, bucket, width_bucket


def test_buckets_of_sizes_have_no_gap_above_a_quarter():
    found = sorted({bucket(n, per_octave=4) for n in range(1, 1000)})
    assert found[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert all(bucket(n, per_octave=4) >= n for n in range(1, 1000))
    assert all(b <= 1.25 * a for a, b in itertools.pairwise(found[3:]))


def test_a_width_is_the_smallest_bucket_that_holds_the_row():
    assert [width_bucket(n) for n in (0, 1, 8, 9, 33, 8192)] == [8, 8, 8, 16, 48, 8192]
    assert [width_bucket(n, least=16) for n in (1, 16, 17)] == [16, 16, 32]
    assert [width_bucket(n) for n in (8193, 4 * 8192)] == [8192 + STEP, 4 * 8192]
    assert all(width_bucket(n) in WIDTHS for n in range(8193))
