"""`benchmarks/gpu.py`: rows by processes of their own, kept in one file, judged where they may be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TRAINED = {
    "ms": 10.0,
    "tokens_per_second": 2.0,
    "operations": 6e12,
    "filled": 1.0,
    "remat": "none",
    "attention": "cudnn",
    "products": "compute_dtype",
    "device": "NVIDIA H200",
    "platform": "cuda",
    "jax": "1",
    "jaxlib": "1",
    "peak_bytes": 2**31,
}
DECODED = TRAINED | {"bytes": 4.3e10, "filled": 0.75}
SAMPLED = TRAINED | {"sample": 0.5, "score": 0.0, "optimize": 0.5}
CHECKED = TRAINED | {"ok": True, "largest": 0.01, "cases": {"full 64": {"ok": True}}}


def result(name):
    return {"checks": CHECKED, "decode": DECODED, "grpo": SAMPLED}.get(name.split()[0], TRAINED)


@pytest.fixture
def gpu(benchmark, monkeypatch):
    """The script, whose processes answer at once; `asked` is what they were asked for, `answers` what some say."""
    script = benchmark("gpu")
    script.asked, script.answers = [], {}

    def answer(name, remat, output, seconds, *, anywhere, profile):
        script.asked.append((name, remat))
        assert 0 < seconds <= 150
        return script.answers.get((name, remat), result(name))

    monkeypatch.setattr(script, "by_a_process", answer)
    monkeypatch.setattr(script, "card", lambda: "driver 580, NVIDIA H200")
    return script


def rows_of(folder):
    return json.loads((folder / "gpu.json").read_text())["rows"]


def test_a_row_that_fails_leaves_the_others_and_is_all_that_the_same_command_does_again(
    gpu, tmp_path, capsys
):
    gpu.answers["decode tiny", "none"] = {"error": "no kernel image"}
    command = ["--shape", "tiny", "--output", str(tmp_path)]
    assert gpu.main(command) == 1
    assert list(rows_of(tmp_path)) == ["checks", "sft tiny", "decode tiny", "grpo tiny", "lora tiny"]
    assert "| decode tiny |  |  | failed: no kernel image |" in capsys.readouterr().out
    gpu.asked, gpu.answers = [], {}
    assert gpu.main(command) == 0
    assert gpu.asked == [("decode tiny", "none")]
    assert rows_of(tmp_path)["decode tiny"]["ms"] == 10


def test_a_row_that_was_good_is_not_lost_to_a_failure(gpu, tmp_path, capsys):
    command = ["--shape", "tiny", "--output", str(tmp_path), "--only", "sft"]
    assert gpu.main(command) == 0
    gpu.answers["sft tiny", "none"] = {"error": "no kernel image"}
    gpu.main([*command, "--again"])
    assert "sft tiny: failed: no kernel image" in capsys.readouterr().out
    assert rows_of(tmp_path)["sft tiny"]["ms"] == 10


def test_a_row_that_only_time_ended_is_left_out_and_did_not_fail(gpu, tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 0.0, 0.0, *[500.0] * 50])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    gpu.answers["sft tiny", "none"] = {"error": "no result within 150 s"}
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path), "--only", "sft"]) == 3
    assert "sft tiny: left out for lack of time" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def test_checks_of_other_code_or_of_a_cpu_are_done_again(gpu, tmp_path, monkeypatch):
    tiny, real = ["--output", str(tmp_path), "--only", "checks", "--shape", "tiny"], ["--shape", "1B"]
    assert gpu.main(tiny) == gpu.main(tiny) == 0
    assert len(gpu.asked) == 1
    assert gpu.main([*tiny[:4], *real]) == 0
    assert len(gpu.asked) == 2
    monkeypatch.setattr(gpu, "commit", lambda: "other")
    assert gpu.main([*tiny[:4], *real]) == 0
    assert len(gpu.asked) == 3


@pytest.mark.long
def test_without_a_gpu_nothing_but_tiny_rows_is_measured(benchmark, tmp_path):
    row = benchmark("gpu").by_a_process("sft 1B 2048", "full", tmp_path, 100, anywhere=False)
    assert row == {"error": "JAX runs on the cpu here: is its CUDA package installed (the extra cuda)?"}


def test_rows_of_another_shape_are_kept(gpu, tmp_path):
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path), "--only", "sft"]) == 0
    assert gpu.main(["--shape", "1B", "--output", str(tmp_path), "--only", "sft", "grpo"]) == 0
    rows = rows_of(tmp_path)
    assert {name: (row["shape"], row["numbers"]) for name, row in rows.items()} == {
        "sft tiny": ("tiny", [2, 64]),
        "sft 1B 2048": ("1B", [8, 2048]),
        "grpo 1B": ("1B", [32, 8, 256, 512]),
        "sft 1B 4096": ("1B", [4, 4096]),
    }
    assert all(row["date"] and row["commit"] and row["python"] for row in rows.values())
    gpu.asked = []
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path), "--only", "sft", "--again"]) == 0
    assert gpu.asked == [("sft tiny", "none")]


def test_without_a_shape_all_rows_but_the_tiny_ones_are_measured(gpu, tmp_path):
    assert gpu.main(["--output", str(tmp_path)]) == 0
    assert [name for name, _ in gpu.asked] == [name for name in gpu.ROWS if "tiny" not in name]


def test_training_that_runs_out_of_memory_is_tried_again_with_less_and_says_so(gpu, tmp_path, capsys):
    for name in ("sft tiny", "decode tiny", "lora tiny"):
        for level in ("none", "minimal"):
            gpu.answers[name, level] = {"error": "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"}
    gpu.answers["sft tiny", "full"] = TRAINED | {"remat": "full"}
    gpu.answers["lora tiny", "full"] = {"error": "RESOURCE_EXHAUSTED: again"}
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path), "--only", "sft", "decode", "lora"]) == 1
    assert [pair for pair in gpu.asked if pair[1] == "full"] == [("sft tiny", "full"), ("lora tiny", "full")]
    shown = capsys.readouterr().out
    assert "| full (minimal ran out of memory) |" in shown
    assert "failed (with remat minimal too): RESOURCE_EXHAUSTED: again" in shown


def test_no_row_begins_when_time_is_short(gpu, tmp_path, capsys):
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path), "--seconds", "70"]) == 3
    assert not gpu.asked and "sft tiny: left out for lack of time" in capsys.readouterr().out


def test_rows_of_another_machine_are_not_mixed_with_these(gpu, tmp_path, monkeypatch, capsys):
    command = ["--output", str(tmp_path), "--only", "sft 1B 2048"]
    assert gpu.main(command) == 0
    before = (tmp_path / "gpu.json").read_text()
    monkeypatch.setattr(gpu, "card", lambda: "no nvidia-smi")
    assert gpu.main([*command, "--again"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "gpu.json").read_text() == before


def test_a_name_that_no_row_has_is_refused_in_a_line(gpu, tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path), "--only", "sft 2B"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_shares_are_of_what_the_card_could_do_and_blank_on_another(benchmark):
    gpu = benchmark("gpu")
    # 6e12 operations in 10 ms are 600 TFLOP/s of 989; 4.3e10 bytes at 4.3 TB/s are the whole 10 ms.
    assert gpu.shares("sft 1B 2048", TRAINED) == ("60.7% MFU, 100% of the columns filled", "50%")
    assert gpu.shares("sft 1B 2048", TRAINED | {"ms": 20.0}) == (
        "30.3% MFU, 100% of the columns filled",
        "50%, missed",
    )
    assert gpu.shares("lora 8B 4096", TRAINED)[1] == "13,000 tokens/s, missed"
    full = ("100.0% of the roofline, 75% of the columns read are filled", "60%")
    assert gpu.shares("decode 1B 64", DECODED) == full
    assert gpu.shares("grpo 1B", SAMPLED) == (
        "sample 50%, score 0%, optimize 50%",
        "sample at most 40%, missed",
    )
    other = {"device": "NVIDIA A100"}
    filled = "100% of the columns filled"
    assert gpu.shares("sft 1B 2048", TRAINED | other) == (filled, "")
    assert gpu.shares("lora 8B 4096", TRAINED | other) == (filled, "")
    assert gpu.shares("decode 1B 64", DECODED | other) == ("75% of the columns read are filled", "")
    assert gpu.shares("grpo 1B", SAMPLED | other)[1] == ""


def test_a_failed_check_names_its_cases(benchmark):
    wrong = CHECKED | {"ok": False, "cases": {"full 64": {"ok": True}, "packed 64": {"ok": False}}}
    assert benchmark("gpu").cells("checks", wrong)[2] == "failed: packed 64; largest difference 0.01"


@pytest.mark.long
def test_a_process_that_fails_or_takes_too_long_says_so_in_a_line(benchmark, tmp_path, monkeypatch):
    gpu = benchmark("gpu")
    assert gpu.by_a_process("sft tiny", "full", tmp_path, 0.05, anywhere=True) == {
        "error": "no result within 0 s"
    }
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    row = gpu.by_a_process("sft tiny", "full", tmp_path, 100, anywhere=True)
    assert list(row) == ["error"] and "nonsense" in row["error"] and "\n" not in row["error"]
    assert "Traceback" in (tmp_path / "sft-tiny.log").read_text()
    (tmp_path / "jax.py").write_text("import sys; print('gone'); sys.exit(5)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    row = gpu.by_a_process("sft tiny", "full", tmp_path, 100, anywhere=True)
    assert row == {"error": "ended with status 5: gone"}


@pytest.mark.slow
def test_all_of_it_runs_with_a_tiny_shape_where_packages_for_data_sets_are_missing(
    benchmark, tmp_path, monkeypatch, capsys
):
    gpu = benchmark("gpu")
    for name in ("datasets", "grain", "transformers", "tokenizers"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu.main(["--shape", "tiny", "--output", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert list(rows) == ["checks", "sft tiny", "decode tiny", "grpo tiny", "lora tiny"]
    assert rows["checks"]["ok"] and len(rows["checks"]["cases"]) == 8
    assert all(
        row["ms"] > 0 and row["tokens_per_second"] > 0 for name, row in rows.items() if name != "checks"
    )
    assert rows["sft tiny"]["remat"] == rows["grpo tiny"]["remat"] == "none"
    shown = capsys.readouterr().out
    assert "MFU" not in shown and "roofline" not in shown and "| sft tiny |" in shown
    as_if = {name: row | {"device": "NVIDIA H200"} for name, row in rows.items()}
    assert "of the columns filled | 50%, missed" in gpu.table({"card": "driver 1", "rows": as_if})


@pytest.mark.slow
def test_it_needs_no_package_for_data_sets():
    code = (
        "import sys\n"
        "for name in ('datasets', 'grain', 'transformers', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import gpu_rows, growth, smoke"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_the_script_itself_takes_no_device():
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import gpu; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
