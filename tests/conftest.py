import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Corpora and states of the tests stay out of the user's cache."""
    before = os.environ.get("LEAPLM_CACHE")
    os.environ["LEAPLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        os.environ.pop("LEAPLM_CACHE")
    else:
        os.environ["LEAPLM_CACHE"] = before
