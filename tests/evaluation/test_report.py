"""The page of an evaluation: what it shows, what it leaves out and says so, and that no text becomes HTML."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation import report
from jaxalign.evaluation.report import fair_share, write_report
from jaxalign.evaluation.report_items import LONGEST
from jaxalign.evaluation.tasks.truthfulqa import read_mc1
from tests.evaluation import evaluation_folders as folders

REAL = Path(__file__).resolve().parents[3] / "shared/data/evaluation"
EVIL = "</script><script>alert(1)</script><img src=x onerror='alert(1)'>\"><svg onload=alert(1)>&amp;"
CHOICES = {"choices": [" A", " B"], "logps": [-1.0, -2.0], "right": [1]}


class Parsed(HTMLParser):
    """A page as a browser reads it: elements, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        (self.scripts if self.tags[-1:] in (["script"], ["style"]) else self.texts).append(data)


def page_of(folder, found, items=None, **options):
    return write_report(folders.write(folder, found, items), **options).read_text()


def item_of(page, index):
    """The HTML of an item; of several tasks', the first."""
    start = page.index(f"<summary><b>{index}</b>")
    return page[
        page.rindex("<details", 0, start) : re.compile(r"</details>(?=<details class=item|</div>)")
        .search(page, start)
        .end()
    ]


def plain(page):
    """The text of a page, each run of white space as one space."""
    return " ".join("".join(Parsed(page).texts).split())


def test_a_figure_stands_beside_its_notes_and_what_the_task_is(tmp_path):
    metrics = {
        "accuracy": folders.figure(0.625, chance=0.25, about="how often it is right"),
        "nll": folders.figure(2.0),
    }
    task = folders.task(metrics, notes=["3 rows cut"], judge="a judge", of=9)
    page = page_of(tmp_path / "run", folders.results(tasks={"quiz": task}))
    text = plain(page)
    assert "Evaluation of minecpu · 2026-01-02T03:04:05+00:00 · jaxalign 1.2.3" in text
    assert "quiz 4 of 9 rows · judged by a judge3 rows cutaccuracy ↑62.5% [52.5, 72.5]" in text
    assert "62.5% [52.5, 72.5], chance 25.0%" in text
    assert text.index("3 rows cut") < text.index("62.5%") < text.index("Tasks") < text.index("What it asks.")
    for told in (
        "sourceA paper",
        "filerows.jsonl, 4 of 9 rows, sha256 abababababab",
        "judgea judge",
        "time3 s",
    ):
        assert told in text
    assert "accuracyhow often it is right" in text and "nllhow" not in text
    assert "are 95% intervals" in text and "class=browser" not in page


def test_the_confidence_is_the_settings(tmp_path):
    page = page_of(tmp_path / "run", folders.results(settings={"confidence": 0.9}))
    assert "are 90% intervals" in page


def test_no_text_becomes_html(tmp_path):
    metrics = {EVIL: folders.figure(about=EVIL, unit=EVIL), "accuracy": folders.figure(0.5)}
    task = folders.task(
        metrics,
        about=EVIL,
        source=EVIL,
        file=EVIL,
        sha256=EVIL,
        judge=EVIL,
        notes=[EVIL],
        groups={EVIL: metrics},
    )
    rows = [
        folders.item(
            0,
            1,
            place=EVIL,
            group=EVIL,
            answers=[EVIL, EVIL * 100],
            references=[EVIL],
            judge={EVIL: EVIL, "x": {EVIL: EVIL}},
            notes=[EVIL],
            **CHOICES | {"choices": [EVIL, "b"]},
        )
        | {"prompt": [{"role": EVIL, "content": EVIL}, {"role": "user", "content": {EVIL: EVIL}}]},
        folders.item(1, 0, prompt=EVIL * 100),
    ]
    rows[0]["scores"][EVIL] = 0.5
    found = folders.results(
        EVIL,
        {"<b>quiz": task},
        created=EVIL,
        device=EVIL,
        settings={EVIL: EVIL},
        versions={"jaxalign": EVIL, EVIL: EVIL},
    )
    items = {"<b>quiz": rows}
    other = folders.write(tmp_path / "other", found | {"settings": {EVIL: 1}}, items)
    page = page_of(tmp_path / "run", found, items, others=[other])
    parsed = Parsed(page)
    assert parsed.tags.count("script") == 1 and "img" not in parsed.tags
    assert set(parsed.tags) <= set(
        "html head meta title style body h1 h2 h3 h4 p i b table thead tbody tr th td a span small svg rect line "
        "section dl dt dd details summary div input select option button output script wbr ul li".split()
    )
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert page.count("alert(1)") > 50 and "</script><script>" not in page
    # What was escaped is what one reads.
    assert EVIL in "".join(parsed.texts)


def test_an_item_shows_prompt_answers_scores_references_and_what_the_judge_said(tmp_path):
    row = folders.item(
        7,
        0.5,
        prompt=[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}],
        group="greetings",
        answers=["Hello.", ""],
        references=["Good day."],
        judge={"verdict": "[[A]]", "rating": 3},
        notes=["cut at 9 tokens"],
    )
    row["scores"] |= {"length": 12, "fluency": 0.25, "missing": None}
    page = page_of(tmp_path / "run", folders.results(), {"quiz": [row]})
    text = plain(item_of(page, 7))
    assert text == (
        "7 = Hi. greetingsrows.jsonl:8user Hi?assistant Hi.answer 1Hello.answer 2(empty)"
        "accuracy 0.500 · length 12 · fluency 0.250 · missing –cut at 9 tokensjudgeverdict[[A]]rating3"
        "referencesGood day."
    )
    assert "The only item." in page


def test_choices_show_their_probabilities_and_which_is_right_and_which_the_likeliest(tmp_path):
    page = page_of(tmp_path / "run", folders.results(), {"quiz": [folders.item(0, 0, **CHOICES)]})
    first, second = re.findall(r"<tr><td>(.*?)</tr>", item_of(page, 0))
    # 1 / (1 + 1/e) and its rest.
    assert "✗" in first and "A" in first and "▸ 73.1%" in first and "--p:73.1%" in first
    assert "✓ right" in second and "B" in second and ">26.9%" in second and "▸" not in second
    assert "class='mark wrong'" in page and "data-kinds='wrong0 wrong'" in page


def test_models_stand_side_by_side_and_what_one_lacks_is_said(tmp_path):
    def rows(*scores, **changes):
        return [folders.item(i, s, answers=[f"said {i} {changes}"]) | changes for i, s in enumerate(scores)]

    first = folders.write(tmp_path / "a", folders.results("alpha"), {"quiz": rows(1, 0, 0)})
    second = folders.write(
        tmp_path / "b",
        folders.results("beta", {"quiz": folders.task(), "new": folders.task({"kl": folders.figure(3.0)})}),
        {"quiz": rows(0, 0), "new": [folders.item(0, 1, prompt="only here")]},
    )
    third = folders.write(tmp_path / "c", folders.results("gamma"), {"quiz": rows(1, 0, prompt="another")})
    path = write_report(first, others=[second, third])
    assert path == first / "report.html" and not (second / "report.html").exists()
    page = path.read_text()
    one, last = plain(item_of(page, 0)), plain(item_of(page, 2))
    assert "alphasaid 0 {}accuracy 1betasaid 0 {}accuracy 0gammahas another prompt under this number" in one
    assert "data-kinds='wrong1 wrong split'" in page and one.startswith("0 ✓✗ question 0")
    assert "betahas no such item" in last
    # beta's own task has its items too, and the others were not asked.
    assert "only here" in page and plain(page).count("not evaluated") == 2
    assert "Evaluation of 3 models" in page and "right and wrong models" in page


def test_differences_to_the_first_model_are_of_pairs(tmp_path):
    def folder(name, scores):
        task = folders.task(
            {"accuracy": folders.figure(sum(scores) / len(scores)), "nll": folders.figure(2.0)}
        )
        rows = [folders.item(i, score) for i, score in enumerate(scores)]
        return folders.write(tmp_path / name, folders.results(name, {"quiz": task}), {"quiz": rows})

    page = write_report(folder("a", [0, 0, 1, 1] * 9), others=[folder("b", [1, 0, 1, 1] * 9)]).read_text()
    accuracy, nll = re.findall(r"<td class='number less'>(.*?)</td>", page)[1::2]
    # 9 of 36 items differ, all in the same direction.
    assert "+25.0 <span class=dim>[+" in accuracy and accuracy.startswith("<b title=")
    assert nll == "" and '<th class="number less">less a</th>' in page and "its paired 95% interval" in page
    assert "less" not in plain(page_of(tmp_path / "c", folders.results()))


def test_of_many_items_some_are_shown_and_it_says_how_many(tmp_path):
    rows = [folders.item(i, i % 2) for i in range(100)]
    page = page_of(tmp_path / "run", folders.results(), {"quiz": rows}, most_items=9)
    shown = page.count("<details class=item ")
    told = re.search(r"(\d+) of 100 items: 3 worst, 3 best, 3 random \(seed 0\)\. Only the random", page)
    assert int(told[1]) == shown <= 9
    assert page != page_of(tmp_path / "again", folders.results(), {"quiz": rows}, most_items=9, seed=1)
    assert "All 100 items." in page_of(tmp_path / "all", folders.results(), {"quiz": rows}, most_items=100)
    with pytest.raises(ValueError, match="most_items must be at least 1, got 0"):
        write_report(tmp_path / "run", most_items=0)


def test_a_page_stays_small_by_showing_fewer_items_of_what_is_long(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ITEM_BYTES", 100_000)
    long = [folders.item(i, 1, prompt=f"{i} " + "word " * 1000) for i in range(40)]
    short = [folders.item(i, 1) for i in range(40)]
    tasks = {"long": folders.task(), "short": folders.task()}
    page = page_of(tmp_path / "run", folders.results(tasks=tasks), {"long": long, "short": short})
    assert "All 40 items." in page and re.search(r"\d+ of 40 items", page)
    assert 80_000 < len(page) < 130_000


def test_a_share_of_room_is_as_large_as_all_together_allow():
    assert fair_share([1, 2, 3], 6) == float("inf") and fair_share([], 1) == float("inf")
    # 1 + s + s = 5
    assert fair_share([9, 1, 3], 5) == 2
    assert fair_share([4, 4], 6) == 3


def test_what_every_prompt_begins_with_is_told_once(tmp_path):
    shots = "Question: one?\nAnswer: 1\n\n" * 12
    rows = [folders.item(i, 1, prompt=f"{shots}Question: same {i}?\nAnswer:") for i in range(3)]
    page = page_of(tmp_path / "run", folders.results(), {"quiz": rows})
    assert page.count("Question: one?") <= 2 * 12  # once, and the beginning of it where it is folded
    assert "Each prompt begins with" in page
    assert plain(item_of(page, 1)).startswith(
        "1 ✓ Question: same 1? Answer: rows.jsonl:2Question: same 1? Answer:"
    )


def test_a_very_long_text_is_cut_and_says_where_the_rest_is(tmp_path):
    rows = [
        folders.item(0, 1, answers=["w" * LONGEST + "z" * 1234]),
        folders.item(1, 1, answers=["v" * LONGEST]),
    ]
    page = page_of(tmp_path / "run", folders.results(), {"quiz": rows})
    assert "… 1,234 more characters in items/quiz.jsonl" in page and "zz" not in page
    assert page.count("more characters") == 1


@pytest.mark.parametrize(("count", "is_open"), [(12, True), (13, False)])
def test_groups_stand_by_value_and_many_are_folded(count, is_open, tmp_path):
    groups = {
        f"g{i:02d}": {"accuracy": folders.figure(i / 20), "nll": folders.figure(2.0)} for i in range(count)
    }
    groups["none"] = {"accuracy": folders.figure() | {"value": "nan"}, "nll": folders.figure(2.0)}
    del groups["g05"]
    page = page_of(tmp_path / "run", folders.results(tasks={"quiz": folders.task(groups=groups)}))
    assert [" open>" in f"{x}>" for x in re.findall(r"<details class=groups( open)?>", page)] == [
        is_open,
        False,
    ]
    names = re.findall(r"<td class=head rowspan=1>(g\d\d|none)</td>", page)
    ranked = sorted((name for name in groups if name != "none"), reverse=True)
    # By accuracy; by nll, where all are equal, by name.
    assert names == [*ranked, "none", *sorted(groups)]
    assert f"by group ({count})" in page


def test_settings_that_differ_are_told_at_the_top_and_come_first(tmp_path):
    first = folders.write(
        tmp_path / "a", folders.results("a", settings={"model": "a", "seed": 0, "shots": 5})
    )
    second = folders.write(
        tmp_path / "b", folders.results("b", settings={"model": "b", "seed": 0, "shots": 3})
    )
    page = write_report(first, others=[second]).read_text()
    assert "The models&#x27; settings differ in shots." in page
    rows = re.findall(r"<tr( class=differs)?><td>(model|shots|seed)</td>", page)
    assert rows == [(" class=differs", "model"), (" class=differs", "shots"), ("", "seed")]
    assert "settings differ" not in page_of(tmp_path / "c", folders.results())


def test_a_folder_that_is_wrong_leaves_no_page(tmp_path):
    first = folders.write(tmp_path / "a", folders.results(), {"quiz": [folders.item(0, 1)]})
    with pytest.raises(DataError, match=r"b/results\.json: no such file"):
        write_report(first, others=[tmp_path / "b"])
    second = folders.write(tmp_path / "c", folders.results(), {"quiz": [{"index": 0}]})
    with pytest.raises(DataError, match=r"c/items/quiz\.jsonl:1: expected a text or turns"):
        write_report(first, others=[second])
    assert not list(tmp_path.rglob("report.html"))


def test_an_evaluation_of_no_task_is_a_page_too(tmp_path):
    assert "No task was evaluated." in page_of(tmp_path / "run", folders.results(tasks={}))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_real_questions_of_three_models_are_a_page_of_reasonable_size(tmp_path):
    questions = read_mc1(str(REAL / "truthfulqa.csv"))
    paths = []
    for model in range(3):
        rows = [
            folders.item(
                i,
                (i + model) % 2,
                prompt=question.context,
                group=question.group,
                choices=list(question.choices),
                logps=[-1.0 - (k + model) % 3 for k in range(len(question.choices))],
                right=list(question.right),
            )
            for i, question in enumerate(questions)
        ]
        task = folders.task({"accuracy": folders.figure(0.5, chance=0.25)}, items=590, of=590)
        paths.append(
            folders.write(tmp_path / f"{model}", folders.results(f"m{model}", {"quiz": task}), {"quiz": rows})
        )
    path = write_report(paths[0], others=paths[1:])
    page = path.read_text()
    assert (
        path.stat().st_size < 3e6 and page.count("What is human life expectancy in the United States?") <= 2
    )
    told = re.search(r"(\d+) of 590 items: (.*?)\. Only", page)
    assert int(told[1]) == page.count("<details class=item ") <= 60
    assert sorted(told[2].split(", ")) == [
        "15 best",
        "15 on which the models differ most",
        "15 random (seed 0)",
        "15 worst",
    ]
