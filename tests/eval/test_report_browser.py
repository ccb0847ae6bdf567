"""The page as a browser runs it: sliders through drafts, tables that sort. Needs Chromium (Debian's package, or CHROMIUM=path)."""

import html
import os
import re
import shutil
import subprocess

import pytest

from eval.report import Sample, Section, write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip
DRAFTS = ["one one card", "one pair card", "two pair here"]


def after(page, profile, script):
    """The page's text content as it stands once `script` has run in it."""
    acted = page.with_suffix(".acted.html")
    acted.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", acted.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def page(tmp_path):
    samples = [
        Sample("flow", "the hand is ", ["two pair now"], DRAFTS),
        Sample("head", "the hand is ", ["one", " pair"]),
    ]
    table = [["head", "value"], ["b", "10"], ["a", "9"], ["c", "1,000"]]
    write_report(tmp_path / "r.html", "T", [Section("S", table=table, samples=samples)], [])
    return tmp_path / "r.html"


def refined(dom):
    """Text and marked words of the sample with drafts."""
    told = re.search(r'<span class="told"[^>]*>(.*?)</span>', dom, re.DOTALL).group(1)
    return html.unescape(re.sub("<[^>]+>", "", told)), [m.strip() for m in re.findall("<mark>(.*?)</mark>", told)]


def slide(to):
    return f"const s = document.querySelector('.pass input'); s.value = {to}; s.dispatchEvent(new Event('input'));"


def test_a_slider_goes_through_the_drafts_and_marks_what_changed(page, tmp_path):
    for at, text, changed, says in (
        (None, "two pair now", ["now"], "as written"),
        (0, "one one card", [], "pass 1 of 3"),
        (1, "one pair card", ["pair"], "pass 2 of 3"),
        (2, "two pair here", ["two", "here"], "pass 3 of 3"),
    ):
        dom = after(page, tmp_path / "profile", "" if at is None else slide(at))
        assert refined(dom) == (text, changed)
        assert re.search(r"<output>(.*?)</output>", dom).group(1) == says
    assert dom.count('type="range"') == 1  # a sample of blocks has none


def test_without_scripts_the_text_itself_is_there(page):
    assert refined(page.read_text())[0] == "two pair now"


@pytest.mark.parametrize("clicks, order", [(1, ["9", "10", "1,000"]), (2, ["1,000", "10", "9"])])
def test_a_click_on_a_columns_head_sorts_by_its_numbers(page, tmp_path, clicks, order):
    script = "const b = document.querySelectorAll('section table th button')[1];" + "b.click();" * clicks
    dom = after(page, tmp_path / "profile", script)
    body = re.search(r"<section>.*?<tbody>(.*?)</tbody>", dom, re.DOTALL).group(1)
    assert re.findall(r'<td class="number">(.*?)</td>', body) == order
