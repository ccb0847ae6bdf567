"""Where what can be made again is kept: token stores, trunk states, classifiers."""

import os
from pathlib import Path


def cache_root() -> Path:
    return Path(os.environ.get("LEAPLM_CACHE", "~/.cache/leaplm")).expanduser()
