"""What a result says of where it was measured."""

MEASURED = {
    "versions": {"jax": "1.0"},
    "machine": {"cpu": "X", "cores": 2, "flags": ["avx2"], "commit": "abc", "date": "2026-01-02T00:00:00"},
}


def test_settings_of_the_process_are_recorded_and_shown_but_no_folders(benchmark, monkeypatch):
    machine = benchmark("machine")
    for name in machine.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("UNRELATED", "1")
    assert machine.machine()["environment"] == machine.environment() == {"XLA_FLAGS": "--xla_something=1"}
    with_settings = {**MEASURED, "machine": {**MEASURED["machine"], "environment": machine.environment()}}
    assert machine.origin([MEASURED]) == "2026-01-02, commit abc; X, 2 cores (avx2); jax 1.0"
    assert machine.origin([MEASURED, with_settings]).endswith("; jax 1.0, with XLA_FLAGS=--xla_something=1")
