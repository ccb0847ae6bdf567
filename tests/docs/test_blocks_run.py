"""Every command and every program of README.md and docs/*.md, run from an empty folder, page by page.

`pytest tests/docs -m slow -s -k images` shows one page's output and how long each block took.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks

LIMIT = 3000
"""Seconds for a page."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Tokens of the built-in corpus are made once for all pages."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, cache):
    wanted = [b for b in blocks(page) if b.kind != "data" and not b.skipped]
    missing = [b for b in wanted if b.needs and not os.environ.get(b.needs)]
    plan = [{"where": b.where, "kind": b.kind, "code": b.code, "file": b.file} for b in wanted if b not in missing]
    folder, file = tmp_path / "folder", tmp_path / "plan.json"
    folder.mkdir()
    file.write_text(json.dumps(plan))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "REPOSITORY": str(ROOT),
        "LEAPLM_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "tests" / "docs" / "driver.py"), str(file)]
    log = tmp_path / "log"
    with log.open("w") as out:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=LIMIT)
    said = log.read_text()
    print(said)
    assert code.returncode == 0, said[-3000:]
    assert said.count(" took ") == len(plan)
    if missing:
        pytest.skip(f"all but {', '.join(b.where for b in missing)}, which need {missing[0].needs}")
