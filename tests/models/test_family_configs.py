"""config.json: what transformers 4 and transformers 5 wrote reads to one `ModelConfig`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.config import Mixture, RopeScaling
from jaxalign.models.families import FAMILIES, config_from_json, config_to_json

GOLDEN = Path(__file__).parents[1] / "golden" / "configs"
NAMES = sorted(p.name for p in GOLDEN.iterdir())
STYLES = ["transformers4", "transformers5"]
LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, low_frequency_factor=1.5, high_frequency_factor=3.0, original_positions=32
)
SCALINGS = {
    "llama3": LLAMA3,
    "llama_dynamic": RopeScaling(kind="dynamic", factor=4.0, original_positions=2048),
    "glm4": RopeScaling(),
    "mixtral": RopeScaling(),
    "olmo2": RopeScaling(),
    "phi3": RopeScaling(),
    "phi3_longrope": RopeScaling(
        kind="longrope", original_positions=4096, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4
    ),
    "qwen2_yarn": RopeScaling(kind="yarn", factor=4.0, original_positions=64, beta_fast=16.0),
}
SCALINGS["gpt_oss"] = SCALINGS["olmo3"] = SCALINGS["qwen2_yarn"]
LOCAL = {"gemma3_text": 20_000.0, "olmo3": 500_000.0}
PARTIAL = {"phi3": 4, "gpt_neox": 4, "glm": 2, "glm4": 4}


def body(name: str, style: str) -> dict:
    return json.loads((GOLDEN / name / f"{style}.json").read_text())


def read(config: dict) -> models.ModelConfig:
    return config_from_json(config, "config.json")


def test_every_family_with_rotary_positions_has_both_styles():
    assert {body(name, style)["model_type"] for name in NAMES for style in STYLES} == {*FAMILIES} - {"gpt2"}
    for name in NAMES:
        assert "rope_theta" in body(name, "transformers4")
        assert "rope_parameters" not in body(name, "transformers4")
        assert "rope_parameters" in body(name, "transformers5")
        assert "rope_scaling" not in body(name, "transformers5")


@pytest.mark.parametrize("name", NAMES)
def test_both_styles_read_to_one_config(name):
    config = read(body(name, "transformers4"))
    assert read(body(name, "transformers5")) == config
    assert config.rope_theta == (500_000.0 if name == "olmo3" else 50_000.0)
    assert config.rope_scaling == SCALINGS.get(name, RopeScaling(kind="linear", factor=4.0))
    assert config.rope_theta_local == LOCAL.get(name)
    assert config.rotary_size == PARTIAL.get(name, config.head_dim)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if body(n, "transformers4").get("rope_scaling") and n != "phi3_longrope"]
)
def test_the_oldest_name_of_the_scaling_reads_alike(name):
    old = body(name, "transformers4")
    old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    assert read(old) == read(body(name, "transformers4"))


def test_neox_reads_the_fields_that_only_it_has():
    old = body("gpt_neox", "transformers4")
    del old["rope_theta"], old["partial_rotary_factor"]
    config = read(old)
    assert (config.rope_theta, config.rotary_size) == (50_000.0, 4)
    assert config == read(body("gpt_neox", "transformers4"))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gpt_oss"])
def test_without_rotary_fields_the_defaults_of_the_family_hold(name):
    config = body(name, "transformers4")
    for field in ("rope_theta", "rope_scaling", "rotary_emb_base", "rope_local_base_freq"):
        config.pop(field, None)
    defaults = {
        "gemma3_text": (1_000_000.0, 10_000.0),
        "olmo3": (500_000.0, 500_000.0),
        "smollm3": (2_000_000.0, None),
    }
    theta, local = defaults.get(name, (10_000.0, None))
    expected = replace(
        read(body(name, "transformers4")),
        rope_theta=theta,
        rope_theta_local=local,
        rope_scaling=RopeScaling(),
    )
    assert read(config) == expected


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_reads_to_the_same_config_in_either_style(name):
    config = read(body(name, "transformers4"))
    written = config_to_json(config)
    assert read(written) == config
    # Each version of transformers reads its own fields.
    of_local = {"rope_local_base_freq"}
    older = {k: v for k, v in written.items() if k != "rope_parameters"}
    newer = {k: v for k, v in written.items() if k not in {"rope_theta", "rope_scaling"} | of_local}
    assert read(older) == config
    assert read(newer) == config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "rope_scaling of type 'ntk' is not supported"),
        (
            {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "rope_parameters of type 'proportional' is not supported",
        ),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1]}}, "rope_scaling.mrope_section: not"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "long_mscale": 1.2}},
            "rope_scaling.long_mscale: not",
        ),
        ({"rope_scaling": {"type": "linear"}}, "missing field 'factor'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}}, "missing field 'long_factor'"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "short_factor has 1 entries, but 4 frequencies",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: not supported in this family"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            r"rope_scaling\.rope_type is not rope_parameters\.rope_type",
        ),
    ],
)
def test_rotary_settings_that_are_not_supported_are_named(change, expected):
    config = {k: v for k, v in body("llama", "transformers4").items() if k != "rope_scaling"}
    with pytest.raises(ModelError, match=expected) as error:
        read(config | change)
    assert str(error.value).startswith("config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "olmo3",
            {"layer_types": ["chunked_attention"] * 7},
            "layer_types: chunked_attention is not supported",
        ),
        ("olmo3", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for 7 layers"),
        ("olmo3", {"sliding_window": None}, "sliding_window is null"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "rotary_layers has 2 entries for 7 layers"),
        (
            "smollm3",
            {"layer_types": ["sliding_attention"] * 7},
            "layer_types has sliding_attention; expected use_sliding_window true",
        ),
    ],
)
def test_layers_that_are_not_supported_are_named(name, change, expected):
    with pytest.raises(ModelError, match=expected):
        read(body(name, "transformers5") | change)


def test_smollm3_counts_its_layers_without_positions():
    config = {
        k: v
        for k, v in body("smollm3", "transformers4").items()
        if k not in ("no_rope_layers", "layer_types")
    }
    assert read(config).rotary_layers == (True, True, True, False, True, True, True)
    assert read(config).layer_slides == (False,) * 7
    windows = {"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2}
    found = read(config | windows)
    assert found.layer_slides == (False, True, False, True, False, True, False)
    assert found.layer_rotations == ("global", "none") * 3 + ("global",)


def test_experts_are_read_in_both_styles():
    mixtral, qwen = (read(body(name, "transformers5")).mixture for name in ("mixtral", "qwen3_moe"))
    assert mixtral == Mixture(experts=4, per_token=2, normalized=True, balance=0.02)
    assert qwen == Mixture(experts=6, per_token=3, normalized=True, balance=0.001, dense_size=40)
    assert read(body("qwen3_moe", "transformers4")).intermediate_size == 24


def test_the_local_layers_of_gemma_3_are_not_scaled():
    config = body("gemma3_text", "transformers5")
    config["rope_parameters"]["sliding_attention"] = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ModelError, match=r"rope_parameters\.sliding_attention: scaling is not supported"):
        read(config)


def test_an_unknown_activation_is_named_with_its_file(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(body("llama", "transformers5") | {"hidden_act": "relu6"})
    )
    with pytest.raises(ModelError, match=r"config\.json: activation 'relu6' is not supported") as error:
        models.load_pretrained(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"hidden_act": "gelu"}, "gelu_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": None, "hidden_activation": None}, "gelu_tanh"),
        ({"hidden_act": "silu"}, "silu"),
    ],
)
def test_gelu_means_the_tanh_form_in_gemma(fields, expected):
    config = {k: v for k, v in body("gemma", "transformers4").items() if not k.startswith("hidden_act")}
    assert read(config | fields).activation == expected
