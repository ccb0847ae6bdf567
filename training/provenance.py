"""Where a number comes from: commit, versions, machine, command."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from training.hardware import describe

PACKAGES = ("leaplm", "torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


def provenance() -> dict[str, Any]:
    """git commit and whether the tree had changes (with a hash of them), versions, hardware."""
    record: dict[str, Any] = {"python": sys.version.split()[0], **describe()}
    record["versions"] = {name: _version(name) for name in PACKAGES}
    commit, diff = _git("rev-parse", "HEAD"), git_diff() + (_git("status", "--porcelain", "--", "*.py", "*.yaml") or "")
    record["git"] = commit
    record["git_diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return record


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def git_diff() -> str:
    diff = _git("diff", "HEAD")
    return f"{diff}\n" if diff else ""


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
