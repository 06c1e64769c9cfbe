"""Pages of one file."""

import base64
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

from jaxalign.runs.page import FOLDED, escaped, folded, table, write_page


def test_a_page_is_one_file_and_half_a_surrogate_pair_does_not_break_it(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", "<t>", ["a\ud800b"])
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    page = path.read_text()
    assert "<title>&lt;t&gt;</title>" in page and "a?b" in page
    assert "<script" not in page


def test_browsers_may_run_the_pages_own_script_alone(tmp_path):
    script = "document.title = 'é'"
    page = write_page(tmp_path / "page.html", "t", ["x"], script=script).read_text()
    (run,) = re.findall(r"<script>(.*?)</script>", page)
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", page)
    assert run == script
    assert base64.b64decode(allowed) == hashlib.sha256(script.encode()).digest()
    assert "default-src 'none'" in page and page.index("Content-Security-Policy") < page.index("<title>")


def test_texts_cannot_become_html():
    assert escaped("<a b='c' d=\"&\">") == "&lt;a b=&#x27;c&#x27; d=&quot;&amp;&quot;&gt;"
    assert "<b>" not in table([{"<b>": "<b>"}]) + folded("<b>" * FOLDED)


def test_a_long_text_is_folded_and_whole():
    text = "x" * FOLDED + "y" * 101
    assert folded(text) == f"<details><summary>{'x' * FOLDED} …</summary>{text}</details>"
    assert folded("short") == "short"


def test_columns_of_numbers_are_told_from_texts():
    assert table([{"a": 1.23456, "b": "x"}, {"a": None, "b": 2}]) == (
        "<div class=wide><table><tr><th class=number>a</th><th>b</th></tr>"
        "<tr><td class=number>1.235</td><td class=text>x</td></tr>"
        "<tr><td class=number></td><td class=text>2</td></tr></table></div>"
    )


def test_several_may_write_one_page_at_once(tmp_path):
    def written(number):
        for _ in range(30):
            write_page(tmp_path / "page.html", f"page {number}", ["x" * 10_000])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(written, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text().endswith("</body></html>")
