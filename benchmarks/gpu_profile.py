"""Where a device's time goes: kernels of one run, as JAX's profiler sees them."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# Kernels that are listed; lines are cut at this many characters.
MOST, WIDTH = 40, 150


def kernels(run: Callable[[], Any], folder: Path | None = None) -> str:
    """Runs it once and lists its kernels, the longest first: share, milliseconds, calls, name, where it comes from.

    The first line says how long the device was busy, of how long from the first kernel to the last.
    """
    with tempfile.TemporaryDirectory() as scratch:
        into = folder or Path(scratch)
        with jax.profiler.trace(str(into)):
            jax.block_until_ready(run())
        files = sorted(into.rglob("*.xplane.pb"))
        if not files:
            return "the profiler wrote nothing"
        return table(ProfileData.from_file(str(files[-1])))


def table(data: Any) -> str:
    """The lines of `kernels`, of what the profiler wrote."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    if not devices:
        return f"no GPU in the profile, only {', '.join(plane.name for plane in planes)}"
    spans: list[tuple[float, float]] = []
    spent: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    source: dict[str, str] = {}
    for line in devices[0].lines:
        if not line.name.startswith("Stream"):
            continue
        for event in line.events:
            spans.append((event.start_ns, event.start_ns + event.duration_ns))
            name = re.sub(r"_\d+$", "", event.name)
            spent[name] += event.duration_ns
            calls[name] += 1
            if name not in source:
                stats = {key: str(value) for key, value in event.stats if key is not None}
                source[name] = stats.get("name") or stats.get("tf_op") or stats.get("hlo_op") or ""
    if not spans:
        return f"no kernels in the profile: {', '.join(line.name for line in devices[0].lines)}"
    busy, until = 0.0, 0.0
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    whole, total = until - min(start for start, _ in spans), sum(spent.values())
    lines = [f"busy {busy / 1e6:,.1f} ms of {whole / 1e6:,.1f}; {len(spans):,} kernels"]
    for name in sorted(spent, key=spent.__getitem__, reverse=True)[:MOST]:
        text = f"{spent[name] / total:6.1%} {spent[name] / 1e6:10.2f} ms {calls[name]:6}x {name[:70]}  {source[name]}"
        lines.append(text[:WIDTH])
    return "\n".join(lines)
