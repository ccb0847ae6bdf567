"""The wheel: ours and nothing else, presets and page included."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "eval", "flowlm", "flowmap", "imm", "mtp", "training", "leaplm")


def test_a_wheel_holds_our_packages_and_they_import_from_there(tmp_path):
    source = tmp_path / "source"  # a copy, so that no stale build folder is packed
    source.mkdir()
    for name in (*PACKAGES[:-1], "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "leaplm.py"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("leaplm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.startswith(("tests", "benchmarks"))]
    assert {"configs/poker.yaml", "eval/report.html", "eval/tasks/local_piqa.yaml", "leaplm.py"} <= set(names)
    sources = {str(p.relative_to(ROOT)) for package in PACKAGES[:-1] for p in (ROOT / package).rglob("*.py")}
    assert sources <= set(names)  # a new package must be listed in pyproject
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"import {', '.join(PACKAGES)}\n"
        f"for module in ({', '.join(PACKAGES)}): assert module.__file__.startswith({str(site)!r}), module\n"
        "from training.config import load_preset; load_preset('poker')"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=tmp_path)
