"""The guides as a site: built without a warning, which is what a broken link is, and complete in itself."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'leaplm[docs]'")
pytest.importorskip("myst_parser", reason="MyST is not installed: pip install 'leaplm[docs]'")


def build(source, target):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_guides_build_without_a_warning_and_ask_no_network(tmp_path):
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loads = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"", page.read_text())
        assert not [tag for tag in loads if 'rel="canonical"' not in tag], page.name
    for style in (tmp_path / "_static").rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style.name


@pytest.mark.parametrize("link", ["none.md", "ten-minutes.md#no-such-part"])
def test_a_broken_link_is_found(tmp_path, link):
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build"))
    page = docs / "images.md"
    page.write_text(page.read_text() + f"\n[broken]({link})\n")
    assert build(docs, tmp_path / "site").returncode != 0
