"""The page shows texts as texts, knows no model, and needs nothing beside itself."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from jaxalign.evaluation.human_sheet.key import Item, Key
from jaxalign.evaluation.human_sheet.page import SCRIPT, STYLE, data_block, rater_page

EVIL = (
    '</script><script>document.title="run"</script><!--<script>'
    '<img src=x onerror=\'document.title="run"\'>&lt;\u2028]]>"\\'
)
POLICY = re.compile(r'Content-Security-Policy content="([^"]*)"')


class Elements(HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.links, self._in = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        self._in = tag == "script"
        if self._in:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = self._in and tag != "script"

    def handle_data(self, data):
        if self._in:
            self.scripts[-1] += data


def key_of(*texts, kind="pair"):
    said = tuple((("assistant", text),) for text in texts[1:])
    models = ("secret-one", "secret-two")[: len(said)]
    item = Item(prompt=(("user", texts[0]),), models=models, answers=said)
    other = Item(prompt=(("user", "other"),), models=models, answers=said)
    items = {"item-1": item, "item-2": other}
    return Key(
        kind=kind, seed=0, models=models, items=items, raters={"1": ("item-2", "item-1"), "2": ("item-2",)}
    )


def test_no_text_of_an_item_ends_its_script():
    page = rater_page(key_of(EVIL, EVIL, "fine"), "1", EVIL)
    tame = rater_page(key_of("a", "b", "c"), "1", "d")
    # The same elements whatever the texts are; two scripts are ours.
    assert Elements(page).tags == Elements(tame).tags
    assert Elements(page).tags.count("script") == 2 and "img" not in Elements(page).tags
    data, script = Elements(page).scripts
    assert script == SCRIPT
    assert json.loads(data)["items"][1]["prompt"] == [["user", EVIL]]
    assert json.loads(data)["items"][1]["answers"][0] == [["assistant", EVIL]]
    assert f"<title>{html.escape(EVIL)}</title>" in page


def test_a_data_block_holds_no_sign_of_html():
    block = data_block([EVIL])
    assert not re.search(r"[<>&\u2028]", block) and json.loads(block) == [EVIL]


def test_the_policy_allows_our_script_and_style_alone():
    page = rater_page(key_of("a", "b", "c"), "1", "d")
    (policy,) = POLICY.findall(page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for text, name in ((SCRIPT, "script-src"), (STYLE, "style-src")):
        assert text in page
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_a_page_names_no_file_and_no_address():
    page = rater_page(key_of("a", "b", "c"), "1", "d")
    assert Elements(page).links == []
    assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|innerHTML|eval", page)


@pytest.mark.parametrize("kind", ["pair", "rating"])
def test_a_page_has_the_items_of_its_rater_in_their_order_and_no_model(kind):
    key = key_of("a", "b", "c") if kind == "pair" else key_of("a", "b", kind="rating")
    pages = [rater_page(key, rater, "d") for rater in ("1", "2")]
    assert not any("secret" in page for page in pages)
    data = [json.loads(Elements(page).scripts[0]) for page in pages]
    assert [[item["id"] for item in one["items"]] for one in data] == [["item-2", "item-1"], ["item-2"]]
    assert {one["sheet"] for one in data} == {key.sheet} and [one["rater"] for one in data] == ["1", "2"]
    assert data[0]["choices"] == (["A", "B", "tie"] if kind == "pair" else list("12345"))
    assert data[0]["column"] == ("choice" if kind == "pair" else "rating")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_nothing_of_an_item(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(rater_page(key_of(EVIL, EVIL, "fine"), "1", "Which?"), encoding="utf-8")
    command = [
        *(
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'user'}",
        ),
        *("--virtual-time-budget=2000", "--dump-dom", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shown = done.stdout
    assert "<title>Which?</title>" in shown
    # The first item is there, so the script ran.
    assert "1 of 2, 0 rated" in shown and "Answer B" in shown
    assert Elements(shown).tags.count("script") == 2 and "img" not in Elements(shown).tags
