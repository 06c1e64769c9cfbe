"""What loading a model's folder and saving it take: host memory and seconds.

usage: python benchmarks/model_io.py [--gib 1] [--fsdp 1 8] [--dtype bfloat16] [--folder DIR]

Makes a Llama of random bfloat16 weights (in DIR, or in a temporary folder), and loads and saves it in a process of its
own for each number of devices, which are virtual ones of the CPU: what they hold is host memory too. So a row tells the
most memory beyond what the process had before, and beyond the weights themselves while it loads or saves. Pages of
files that are mapped count as memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH = 2048


class Peak(threading.Thread):
    """The most memory that this process holds, in bytes, seen every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.begun = threading.Event(), resident()
        self.most = self.begun

    def run(self) -> None:
        """Looks until `done` is set."""
        while not self.done.wait(0.002):
            self.most = max(self.most, resident())


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` gives; its seconds, the most memory above that before it, and what it leaves."""
    peak, began = Peak(), time.perf_counter()
    peak.start()
    found = work()
    seconds = time.perf_counter() - began
    peak.done.set()
    peak.join()
    return found, {
        "seconds": seconds,
        "peak": max(peak.most, resident()) - peak.begun,
        "left": resident() - peak.begun,
    }


def make(folder: Path, gib: float) -> None:
    """A folder with about this much of bfloat16 weights in files of 1 GiB."""
    import dataclasses

    import jax
    from shapes import shape

    from jaxalign import models

    config = dataclasses.replace(
        shape("S"),
        vocab_size=32_000,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_heads=WIDTH // 128,
        num_kv_heads=WIDTH // 128,
        head_dim=128,
        tied_head=True,
    )
    embedding, layer = 2 * 32_000 * WIDTH, 2 * 16 * WIDTH**2
    config = dataclasses.replace(config, num_layers=max(1, round((gib * 2**30 - embedding) / layer)))
    model = models.create(config, key=jax.random.key(0), param_dtype="bfloat16")
    models.save_pretrained(model, folder, max_shard_bytes=2**30)


def measure(folder: Path, fsdp: int, dtype: str) -> dict[str, Any]:
    """Loads the folder over `fsdp` devices, and saves it."""
    import jax

    from jaxalign import models
    from jaxalign.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(fsdp=fsdp))
    jax.block_until_ready(jax.device_put(0.0, mesh.devices.flat[0]))

    def load() -> Any:
        return jax.block_until_ready(models.load_pretrained(folder, param_dtype=dtype, mesh=mesh).params)

    params, loaded = watched(load)
    model = models.Transformer(models.load_config(folder), params)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        _, saved = watched(lambda: models.save_pretrained(model, Path(place) / "saved", dtype="bfloat16"))
    held = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    return {"fsdp": fsdp, "held": held, "largest": largest, "load": loaded, "save": saved}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--fsdp", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--work", choices=["make", "measure"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work == "make":
        make(options.folder, options.gib)
        return
    if options.work == "measure":
        print(json.dumps(measure(options.folder, options.fsdp[0], options.dtype)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = (options.folder or Path(place)) / f"model-{options.gib:g}"
        if not (folder / "config.json").is_file():
            alone("make", folder, "--gib", str(options.gib))
        rows = [
            json.loads(alone("measure", folder, "--dtype", options.dtype, "--fsdp", str(fsdp), devices=fsdp))
            for fsdp in options.fsdp
        ]
    print(
        "| fsdp | weights, GiB | largest part of a device | load: s | most memory | beyond the weights "
        "| save: s | most memory |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for row in rows:
        load, save = row["load"], row["save"]
        sizes = [row["held"], row["largest"], load["peak"], load["peak"] - row["held"], save["peak"]]
        held, largest, peak, beyond, saving = (f"{size / 2**30:.2f}" for size in sizes)
        print(
            f"| {row['fsdp']} | {held} | {largest} | {load['seconds']:.1f} | {peak} | {beyond} "
            f"| {save['seconds']:.1f} | {saving} |"
        )


def alone(work: str, folder: Path, *options: str, devices: int = 1) -> str:
    """What a process of its own prints last."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--work", work, "--folder", str(folder), *options],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return (done.stdout.splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
