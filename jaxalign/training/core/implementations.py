"""Which attention and matrix products a run's models use: chosen once, recorded, and the same when the run resumes."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.runs import Run
from jaxalign.training.core.packing import most_segments


def with_implementations(
    model: Any,
    source: Any,
    mesh: Mesh,
    *,
    section: str,
    run: Run | None,
    asked_by: str = "",
    packing: bool = False,
    mapped: bool = False,
) -> Any:
    """The model with the implementations asked for, else those the run began with, else the fast ones.

    The run records them. Args and errors are those of `setup.load_model`; `asked_by` is the section of the
    configuration that `source` is, where it is not the one that
    they are recorded under.
    """
    recorded = {} if run is None else recorded_implementations(run.metadata())
    before = recorded.get(section, {})
    kept = [name for name in ("attention", "products") if getattr(source, name) == "auto" and name in before]
    asked = {"attention": source.attention, "products": source.products} | {
        name: before[name] for name in kept
    }
    model, device = models.with_config(model, **asked), mesh.devices.flat[0]
    try:
        attention = models.choose_attention(
            model.config, device, max_segments=most_segments(packing), mapped=mapped
        )
    except ValueError as problem:
        began = f" ({run.folder} began with it)" if run and "attention" in kept else ""
        whose = f" (for the {section})" if asked_by else ""
        raise ConfigError(f"{asked_by or section}.attention{whose}: {problem}{began}") from None
    chosen = {"attention": attention, "products": models.choose_matmul(model.config, device.platform)}
    names = {name: choice.implementation for name, choice in chosen.items()}
    if run is not None and len(kept) < len(chosen):
        why = {f"{name}_reason": choice.reason for name, choice in chosen.items()}
        why |= {f"{name}_reason": before[f"{name}_reason"] for name in kept}
        run.add_metadata(implementations=recorded | {section: names | why})
        told = (f"{name} {value} ({why[name + '_reason']})" for name, value in names.items())
        run.info(f"{section}: {', '.join(told)}")
    return models.with_config(model, **names)


def recorded_implementations(metadata: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What a run began with, by section; runs of versions before 0.1.0 named it otherwise."""
    before = {
        section: {name: "compute_dtype" if value == "natural" else value for name, value in names.items()}
        for section, names in metadata.get("forms", {}).items()
    }
    return before | metadata.get("implementations", {})
