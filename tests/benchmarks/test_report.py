"""Tables and plots from raw results, by `benchmarks/report.py`."""

import json

import pytest

MACHINE = {"cpu": "A CPU", "cores": 2, "flags": ["avx2"], "date": "2026-11-21T10:00:00", "commit": "abc1234"}
COMMON = {"machine": MACHINE, "versions": {"jax": "0.10.2", "trl": "1.16.0"}}
STEP = {
    **COMMON,
    "seconds_a_step": {"ours": [0.5, 0.5], "peer": [1.0, 1.0]},
    "tokens_a_step": {"ours": [100.0, 100.0], "peer": [100.0, 100.0]},
    "waited_share": {"ours": [0.0, 0.05], "peer": [0.01, 0.0]},
    "about": "what sft-s was when it was measured",
    "forms": {
        "model": {
            "products": "float32",
            "products_reason": "a CPU without amx_bf16 and avx512_bf16",
            "attention": "blockwise",
        },
        "reference": {
            "products": "float32",
            "products_reason": "a CPU without amx_bf16 and avx512_bf16",
            "attention": "blockwise",
        },
    },
    "split": {"ours": {"data": 0.001, "step": 0.499}, "peer": {"step": 1.0}},
    "memory": {"ours": 300 << 20, "peer": 400 << 20},
    "compile_seconds": 9.5,
    "programs": 12,
    "recompilations": 0,
}
START = {**COMMON, "seconds": {"ours": [5.0, 5.0], "peer": [4.0, 4.0]}, "compile_seconds": [0.3, 0.3]}
MEMORY = {
    **COMMON,
    "memory": {"ours": 1500 << 20, "peer": 2500 << 20},
    "baseline": {"ours": 500 << 20, "peer": 500 << 20},
}


@pytest.fixture
def folder(tmp_path):
    for name, result in {"sft-s": STEP, "start-s": START, "memory-128k": MEMORY}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_tables_hold_ratios_targets_speeds_and_where_the_time_went(benchmark, folder):
    text = benchmark("report").write_report(folder)
    assert (
        text.startswith("| what | precision | target |") and text.count("| SFT step, S, against TRL |") == 2
    )
    row = "| sft-s | 2.00 [2.00, 2.00] | 2 | 1.2 | 500 / 1,000 | 200 / 100 | 300 / 400 | 9.5, 12, 0 |"
    assert row in text
    assert "| start-s | 0.80 [0.80, 0.80] | 2 | 1.0, missed | 5.0 / 4.0 | 0.3 |" in text
    # Less than the peer's, and yet more than was aimed at: without imports 1000 of 2000 MiB.
    assert "| memory-128k | 0.50 | 0.5 | 1,000 / 2,000 | 500 / 500 |" in text
    assert "- sft-s: ours data 1.0, step 499.0; peer step 1,000.0" in text
    assert "A CPU, 2 cores (avx2)" in text and "trl 1.16.0" in text and "commit abc1234" in text
    assert (folder / "report.md").read_text() == text + "\n"
    assert (folder / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_a_memory_above_its_target_misses_it(benchmark):
    targets, case = benchmark("targets"), benchmark("cases").BY_NAME["memory-128k"]
    more = {**MEMORY, "memory": {"ours": 1501 << 20, "peer": 2500 << 20}}
    assert targets.verdict(case, [(case, MEMORY)]) == "0.5"
    assert targets.verdict(case, [(case, more)]) == "0.5, missed"


def test_each_case_is_described_as_it_was_measured_with_the_forms_of_jaxalign(benchmark, folder):
    text = benchmark("report").write_report(folder)
    forms = "jaxalign's products float32, attention blockwise (a CPU without amx_bf16 and avx512_bf16)"
    assert f"- sft-s: what sft-s was when it was measured; {forms}\n" in text
    assert "- start-s: its settings were not kept\n" in text


def test_cases_that_other_processes_held_up_are_marked(benchmark, folder):
    report = benchmark("report")
    assert "busy" not in report.write_report(folder)
    held = {**STEP, "waited_share": {"ours": [0.0, 0.07], "peer": [0.2, 0.06]}}
    (folder / "sft-s" / "result.json").write_text(json.dumps(held))
    text = report.write_report(folder)
    assert "| sft-s | 2.00 [2.00, 2.00], busy 2/4 | 2 |" in text
    assert (
        text.count("busy: the number of repetitions, of both sides, that waited for a core for more than 6%")
        == 1
    )


def test_documentation_changes_between_its_markers_only(benchmark, folder, tmp_path, monkeypatch):
    report, pages = benchmark("report"), benchmark("pages")
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr(pages, "DOCS", docs)
    written = {docs / "performance.md": "ratios", docs / "performance_appendix.md": "cases"}
    for page, name in written.items():
        page.write_text(f"before\n{pages.marker(name, 'begin')}\nold\n{pages.marker(name, 'end')}\nafter\n")
    text = report.write_report(folder, docs=True)
    changed = [page.read_text() for page in written]
    for page in changed:
        assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    summary, details = text.split("\n\n| case | ", 1)
    assert summary in changed[0] and "(performance/ratios.png)" in changed[0]
    assert f"| case | {details}" in changed[1] and ".png" not in changed[1]
    assert (docs / "performance" / "ratios.png").is_file()
    report.write_report(folder, docs=True)
    assert [page.read_text() for page in written] == changed


def test_documentation_without_markers_is_left_alone(benchmark, folder, tmp_path, monkeypatch):
    report, pages = benchmark("report"), benchmark("pages")
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    page = f"{pages.marker('ratios', 'begin')}\nold\n{pages.marker('ratios', 'end')}\n"
    (tmp_path / "performance.md").write_text(page)
    (tmp_path / "performance_appendix.md").write_text("nothing to fill\n")
    with pytest.raises(SystemExit, match=r"performance_appendix\.md: expected the lines"):
        report.write_report(folder, docs=True)
    assert (tmp_path / "performance.md").read_text() == page
    assert not (tmp_path / "performance").exists()


def test_a_folder_without_results_is_named(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", "--output", str(tmp_path / "none")])
    assert benchmark("report").main() == 2
    assert capsys.readouterr().err.strip().endswith("none: no results there")
