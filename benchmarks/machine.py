"""The machine and the code that figures were measured with."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Beginnings of the names of variables that change what XLA, torch or glibc do.
SETTINGS = (
    "XLA_",
    "JAX_",
    "JAXALIGN_HUGE_",
    "OMP_",
    "KMP_",
    "MKL_",
    "TORCH_",
    "MALLOC_",
    "GLIBC_",
    "LD_PRELOAD",
)


def machine() -> dict[str, Any]:
    """What figures depend on: CPU, cores, flags, memory in bytes, system, Python; settings; commit; the time in UTC."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    first = {name.strip(): value.strip() for name, value in reversed(lines)}
    flags = first.get("flags", "").split()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": first.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [f for f in flags if f.startswith(("amx", "avx512")) or f == "avx2"],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": environment(),
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def environment() -> dict[str, str]:
    """The variables of `SETTINGS`, but for folders, which are a machine's own."""
    found = sorted((name, value) for name, value in os.environ.items() if name.startswith(SETTINGS))
    return {name: value for name, value in found if "DIR" not in name}


def origin(measured: list[dict[str, Any]]) -> str:
    """One line: days, commits, machines, versions and settings of results that have `machine` and `versions`."""
    machines = [result["machine"] for result in measured]
    days = sorted({m["date"][:10] for m in machines})
    commits = sorted({m["commit"] for m in machines})
    described = sorted({f"{m['cpu']}, {m['cores']} cores ({' '.join(m['flags'])})" for m in machines})
    versions = sorted({f"{name} {of}" for result in measured for name, of in result["versions"].items()})
    settings = sorted({f"{n}={value}" for m in machines for n, value in m.get("environment", {}).items()})
    versions += [f"with {' '.join(settings)}"] * bool(settings)
    between = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"{between}, commit {', '.join(commits)}; {'; '.join(described)}; {', '.join(versions)}"
