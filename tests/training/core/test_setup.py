"""Models as a run loads them: forms of attention and products that are recorded, and kept when it goes on."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxalign import models
from jaxalign.config import from_dict
from jaxalign.errors import ConfigError, ModelError
from jaxalign.kernels import matmul as products
from jaxalign.llmdoctor.tfpo_config import PatientSource, TFPOConfig
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import attention
from jaxalign.models.config import RopeScaling
from jaxalign.models.tensor_dtypes import device_dtype
from jaxalign.runs import Run, RunConfig
from jaxalign.target import target_device
from jaxalign.training.core import exports, loading, setup
from jaxalign.training.core.implementations import recorded_implementations
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.preference.config import DPOConfig
from jaxalign.training.sft import SFTConfig


@pytest.fixture
def loaded(tiny_model_folder, tmp_path):
    """A function that loads the model of a run and gives its config: of a new run, then of the resumed one."""

    def load(amx, packing=False, **options):
        products.cpu_flags.cache_clear()
        source = ModelSource(path=str(tiny_model_folder), **options)
        config = SFTConfig(run=RunConfig(output=str(tmp_path / "run"), resume=True), model=source)
        with pytest.MonkeyPatch.context() as patch, Run.open(config.run, config, "sft") as run:
            patch.setattr(products, "cpu_flags", lambda: {"amx_bf16"} if amx else set())
            return setup.load_model(source, make_mesh(MeshConfig()), seed=0, run=run, packing=packing)[
                0
            ].config

    return load


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_a_frozen_patients_weights_are_as_the_device_likes_them_and_stay_so_when_resumed(
    platform, dtype, tiny_model_folder, tmp_path, monkeypatch
):
    source = PatientSource(path=str(tiny_model_folder))
    run = RunConfig(output=str(tmp_path / "run"), resume=True)

    def load(platform, **options):
        there = SimpleNamespace(platform=platform)
        monkeypatch.setattr(exports, "device_dtype", lambda asked, device: device_dtype(asked, there))
        config = TFPOConfig(run=run, patient=source)
        with Run.open(run, config, "tfpo") as began:
            return setup.load_model(
                replace(source, **options), make_mesh(), seed=0, section="patient", run=began
            )[0]

    model = load(platform)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(dtype)}
    assert model.config.compute_dtype == dtype
    said = (tmp_path / "run" / "run.log").read_text()
    assert f" in {dtype}" in said
    assert ("rounded from float32, which patient.param_dtype=float32 would not do" in said) == (
        platform == "gpu"
    )
    # On another machine it goes on as it began; a dtype that is named wins.
    other = load("cpu" if platform == "gpu" else "gpu")
    assert other.config.param_dtype == dtype
    assert load(platform, param_dtype="bfloat16").config.param_dtype == "bfloat16"


@pytest.fixture
def on(tiny_model_folder, tmp_path, monkeypatch):
    """Loads the model of a run as if on devices of a platform: its compute dtype, and what the run notes of it."""
    kept = exports.kept_dtype
    monkeypatch.setattr(products, "cpu_flags", lambda: frozenset({"amx_bf16"}))

    def load(platform, steps=1, **options):
        there = SimpleNamespace(platform=platform)
        monkeypatch.setattr(exports, "kept_dtype", lambda *args: kept(*args[:-1], there))
        source = ModelSource(path=str(tiny_model_folder), **options)
        own = RunConfig(output=str(tmp_path / "run"), resume=True)
        config = SFTConfig(run=own, model=source, train=TrainConfig(steps=steps))
        with Run.open(own, config, "sft") as run:
            model, _ = setup.load_model(source, make_mesh(), seed=0, run=run)
            return model.config.compute_dtype, run.metadata()["models"]["model"]

    return load


@pytest.mark.parametrize(
    ("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_products_are_bfloat16_on_accelerators_and_stay_as_they_began_when_resumed(
    platform, dtype, on, tmp_path
):
    found, noted = on(platform)
    assert found == noted["compute_dtype"] == dtype
    assert (noted["param_dtype"], noted["compute_dtype_reason"]) == ("float32", f"a {platform}")
    said = (tmp_path / "run" / "run.log").read_text()
    told = f"in float32; products in bfloat16 (model.compute_dtype=auto: a {platform}))"
    assert (told in said) == (dtype == "bfloat16")
    # On another machine it goes on as it began, and where that is named; another is refused.
    for options in ({}, {"compute_dtype": dtype}):
        assert on("gpu" if platform == "cpu" else "cpu", **options)[0] == dtype
    other = "bfloat16" if dtype == "float32" else "float32"
    with pytest.raises(
        ConfigError, match=r"model\.compute_dtype was 'auto' and is now .*compute_dtype=auto$"
    ):
        on(platform, compute_dtype=other)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("noted", [True, False])
def test_a_run_that_began_when_float32_was_the_default_goes_on_in_it(noted, steps, on, tmp_path):
    """Also where it is made longer, which writes down its configuration anew."""
    on("cpu", compute_dtype="float32")
    file = tmp_path / "run" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["models"]["model"]["compute_dtype_reason"]
    if not noted:
        del metadata["models"]["model"]["compute_dtype"]
    file.write_text(json.dumps(metadata))
    for _ in range(2):
        found, now = on("gpu", steps)
        assert found == now["compute_dtype"] == "float32"
        assert now["compute_dtype_reason"] == "the run began with it"
    with pytest.raises(ConfigError, match=r"model\.compute_dtype was 'float32' and is now 'bfloat16'"):
        on("gpu", steps, compute_dtype="bfloat16")


def recorded(tmp_path):
    return json.loads((tmp_path / "run" / "metadata.json").read_text())["implementations"]


def test_a_run_records_its_forms_and_why(loaded, tmp_path):
    config = loaded(False, compute_dtype="bfloat16")
    assert (config.attention, config.products) == ("blockwise", "float32")
    assert recorded(tmp_path) == {
        "model": {
            "attention": "blockwise",
            "attention_reason": "a cpu",
            "products": "float32",
            "products_reason": "a CPU without amx_bf16 and avx512_bf16",
        }
    }


def test_a_resumed_run_keeps_its_forms_on_another_cpu(loaded, tmp_path):
    assert loaded(True, compute_dtype="bfloat16").products == "bfloat16_float32"
    assert loaded(False, compute_dtype="bfloat16").products == "bfloat16_float32"
    assert recorded(tmp_path)["model"]["products_reason"] == "a CPU with amx_bf16"


def test_a_resumed_run_takes_another_form_where_it_is_asked_to(loaded, tmp_path):
    loaded(True, compute_dtype="bfloat16")
    config = loaded(True, compute_dtype="bfloat16", products="compute_dtype")
    assert (config.attention, config.products) == ("blockwise", "compute_dtype")
    assert loaded(True, compute_dtype="bfloat16").products == "compute_dtype"
    assert recorded(tmp_path)["model"] == {
        "attention": "blockwise",
        "attention_reason": "a cpu",
        "products": "compute_dtype",
        "products_reason": "configured",
    }


def test_a_form_that_cannot_run_here_is_one_line(loaded, tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.attention: attention splash: .* needs a TPU.*anywhere$"):
        loaded(False, attention="splash")
    assert not (tmp_path / "run").exists()


def test_a_recorded_form_that_cannot_run_here_says_where_it_comes_from(loaded, tmp_path):
    loaded(False)
    file = tmp_path / "run" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["implementations"]["model"]["attention"] = "cudnn"
    file.write_text(json.dumps(metadata))
    with pytest.raises(
        ConfigError, match=r"cudnn: .* NVIDIA GPU.*plain and blockwise run anywhere \(.*began with it\)"
    ):
        loaded(False)
    assert loaded(False, attention="plain").attention == "plain"


@pytest.fixture
def ampere(monkeypatch):
    """Here cuDNN's attention is the fast one, but of rows that are not packed."""
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")
    monkeypatch.setitem(attention.FASTEST, "cpu", "cudnn")
    gpu = SimpleNamespace(platform="cpu", compute_capability="8.0")
    choose = attention.choose_attention
    monkeypatch.setattr(models, "choose_attention", lambda config, _, **rows: choose(config, gpu, **rows))


@pytest.mark.parametrize(
    ("packing", "form", "reason"),
    [(False, "cudnn", "a cpu"), (True, "plain", "packed rows need compute capability 9.0, this is 8.0")],
)
def test_the_form_that_is_recorded_is_the_one_that_can_compute_the_rows(
    packing, form, reason, loaded, ampere, tmp_path
):
    assert loaded(False, packing=packing).attention == form
    found = recorded(tmp_path)["model"]
    assert (found["attention"], found["attention_reason"]) == (form, reason)


def test_a_form_that_cannot_compute_the_rows_is_one_line(loaded, ampere):
    with pytest.raises(
        ConfigError, match=r"^model\.attention: attention cudnn: packed rows need .*anywhere$"
    ):
        loaded(False, attention="cudnn", packing=True)


def test_a_placed_model_knows_its_devices(tiny_model_folder, devices):
    source = ModelSource(path=str(tiny_model_folder))
    mesh = make_mesh(MeshConfig(data=2), devices)
    assert setup.load_model(source, mesh, seed=0)[0].config.mesh is mesh
    assert setup.load_model(source, make_mesh(MeshConfig()), seed=0)[0].config.mesh is None


def test_a_value_of_earlier_versions_is_answered_with_its_name_now():
    with pytest.raises(
        ConfigError, match=r"model\.products.*got 'natural', which is named compute_dtype now"
    ):
        from_dict(SFTConfig, {"model": {"products": "natural"}})


def test_what_an_earlier_version_recorded_is_read_by_its_name_now():
    recorded = {"forms": {"model": {"attention": "blockwise", "products": "natural"}}}
    expected = {"model": {"attention": "blockwise", "products": "compute_dtype"}}
    assert recorded_implementations(recorded) == expected


def test_a_run_on_another_platform_than_the_default_compiles_for_its_own_devices(devices, monkeypatch):
    mesh = make_mesh(devices=devices[3:4])
    with setup.default_device(mesh):
        assert target_device() == devices[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with setup.default_device(mesh):
        assert target_device() == devices[3]


@pytest.fixture
def longrope_folder(tiny_model_folder, byte_tokenizer, tmp_path):
    """The tiny model with frequencies for rows of up to 64 tokens and others for up to 256."""
    model = models.load_pretrained(tiny_model_folder)
    factors = {"short_factor": (1.0,) * 4, "long_factor": (1.0, 2.0, 3.0, 4.0)}
    scaling = RopeScaling(kind="longrope", factor=4.0, original_positions=64, **factors)
    model = models.with_config(model, rope_scaling=scaling, folder_positions=256)
    return models.save_pretrained(model, tmp_path / "longrope", tokenizer=byte_tokenizer)


def test_the_context_of_a_run_is_that_of_its_models(longrope_folder):
    mesh, source = make_mesh(MeshConfig()), ModelSource(path=str(longrope_folder))
    longer = replace(source, context=100)
    assert setup.load_model(source, mesh, seed=0)[0].config.max_positions == 64
    for asked in (longer, replace(longer, random_init=True)):
        assert setup.load_model(asked, mesh, seed=0)[0].config.max_positions == 100
    with pytest.raises(ModelError, match=r"^reference\.context=257: .* 1 to 256 tokens"):
        setup.load_model(replace(source, context=257), mesh, seed=0, section="reference")
    config = replace(DPOConfig(), model=longer, reference=source)
    policy, _ = setup.load_model(longer, mesh, seed=0)
    assert setup.load_reference(config, policy, mesh, None).config.max_positions == 100


def test_a_row_beyond_the_context_names_the_key_that_raises_it(longrope_folder, monkeypatch):
    example, shape = SimpleNamespace(source="rows.jsonl:3"), models.load_config(longrope_folder)
    monkeypatch.setattr(loading, "lengths_of", lambda examples: [60 for _ in examples])
    with pytest.raises(ConfigError, match=r"or model\.context to 70 or more$"):
        loading.check_fits(shape, example, new_tokens=10)
