"""The table of a reference's log-probs belongs to one data set, one reference and one set of settings."""

from types import SimpleNamespace

import numpy as np

from jaxalign.training.preference.reference_cache import digest_of, reference_table


def table(folder, *, fingerprint="data", params=None, settings=None):
    """Makes (or reads) a table of no rows, and says whether it was computed."""
    data = SimpleNamespace(train=[], validation=[], fingerprint=fingerprint)
    before = set(folder.glob("*"))
    params = {"w": np.zeros(3)} if params is None else params
    _, path = reference_table(folder, data, params, settings or {}, None, None, batch_size=1)
    return path, path not in before


def test_another_data_set_reference_or_setting_has_another_table(tmp_path):
    first, made = table(tmp_path)
    assert made
    assert table(tmp_path) == (first, False)
    others = [
        table(tmp_path, fingerprint="other data"),
        table(tmp_path, params={"w": np.ones(3)}),
        table(tmp_path, settings={"length_alpha": 0.5}),
    ]
    assert all(made for _, made in others)
    assert len({first, *(path for path, _ in others)}) == 4


def test_the_digest_sees_values_names_shapes_and_dtypes():
    base = {"a": np.zeros((2, 3), np.float32)}
    variants = [
        {"a": np.eye(2, 3, dtype=np.float32)},
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
    ]
    assert len({digest_of(x) for x in [base, *variants]}) == 5
    assert digest_of(base) == digest_of({"a": np.zeros((2, 3), np.float32)})
