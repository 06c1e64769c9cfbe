"""The check of attention by numbers: right where attention is, wrong where it is not."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest


def test_layouts_are_what_their_names_say(benchmark):
    checks = benchmark("gpu_checks")
    positions, segments = checks.layout(checks.LAYOUTS["packed"][0])
    assert np.bincount(segments[0]).tolist() == [19, 90, 1, 70, 20]
    assert positions[0, 88:93].tolist() == [88, 89, 0, 0, 1]
    positions, segments = checks.layout(checks.LAYOUTS["left"][0])
    assert segments[1, :133].sum() == 0 and positions[1, 133:].tolist() == list(range(67))


def test_attention_of_this_device_is_near_the_plain_form_in_float32(benchmark):
    found = benchmark("gpu_checks").difference("packed", 64)
    assert found["ok"] and 0 < found["mean"] < found["largest"]


def test_a_wrong_mask_or_gradient_is_found(benchmark, monkeypatch):
    checks = benchmark("gpu_checks")
    right = checks.attend

    def one_segment(q, k, v, positions, segments, window, config, **options):
        if config.attention == "auto":
            segments = jnp.minimum(segments, 1)
        return right(q, k, v, positions, segments, window, config, **options)

    monkeypatch.setattr(checks, "attend", one_segment)
    assert not checks.difference("packed", 64)["ok"]

    def no_number(q, k, v, positions, segments, window, config, **options):
        out = right(q, k, v, positions, segments, window, config, **options)
        return out * jnp.nan if config.attention == "auto" else out

    monkeypatch.setattr(checks, "attend", no_number)
    assert not checks.difference("padded", 64)["ok"]


@pytest.mark.parametrize(
    ("capability", "most", "form"),
    [
        ("9.0", 1, "cudnn"),
        ("9.0", 32, "cudnn"),
        ("8.0", 1, "cudnn"),
        ("8.0", 32, "plain (packed rows need compute capability 9.0, this is 8.0)"),
    ],
)
def test_the_form_that_is_told_is_the_one_that_a_gpu_would_take(
    benchmark, monkeypatch, capability, most, form
):
    checks = benchmark("gpu_checks")
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    device = SimpleNamespace(platform="gpu", compute_capability=capability, client=client)
    monkeypatch.setattr(checks.jax, "devices", lambda: [device])
    config = dataclasses.replace(checks.shape("S"), compute_dtype="bfloat16", head_dim=64)
    assert checks.attention_form(config, (2, 256, 6, 64), most) == form


def test_a_check_that_raises_is_a_failed_one_and_stops_no_other(benchmark, monkeypatch):
    checks = benchmark("gpu_checks")

    def one(kind, size):
        if kind == "packed":
            raise RuntimeError("no such kernel\nat all")
        return {"ok": True, "largest": 0.01, "form": "cudnn"}

    monkeypatch.setattr(checks, "difference", one)
    found = checks.attention_checks()
    assert not found["ok"] and len(found["cases"]) == 8
    assert found["cases"]["packed 64"] == {"ok": False, "problem": "no such kernel"}
    assert found["attention"] == "cudnn" and found["largest"] == 0.01
