"""flash-attn, chosen by name and never imported by us: its numbers against sdpa's where there is a GPU, its entry anywhere."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import attention
from benchmarks.gpu.attention import PARTS, Shape, available, relative_errors
from flowmap.attention import resolve

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLASH = ("flash_attention_2", "flash_attention_4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [64, 257])
@pytest.mark.parametrize("name", FLASH)
def test_flash_is_as_near_to_exact_products_as_sdpa_is(name, length):
    """Output and gradients in bf16: what rounding there is, twice over at most."""
    shape = Shape(2, 4, length)
    found = relative_errors(name, shape, DEVICE)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'leaplm[flash]'")
    sdpa = relative_errors("sdpa", shape, DEVICE)
    assert all(found[part] < 2 * sdpa[part] + 1e-3 for part in PARTS), (found, sdpa)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_math", "eager"])
def test_what_is_here_is_near_to_exact_products_and_a_wrong_one_is_not(name, monkeypatch):
    shape = Shape(1, 2, 40, 16)
    assert relative_errors(name, shape, DEVICE, torch.float32).keys() == set(PARTS)
    assert max(relative_errors(name, shape, DEVICE, torch.float32).values()) < 1e-5
    assert max(relative_errors(name, shape, DEVICE).values()) < 2e-2
    real = resolve(name)
    monkeypatch.setattr(attention, "resolve", lambda _: lambda q, k, v, mask: real(1.1 * q, k, v, mask))
    assert min(relative_errors(name, shape, DEVICE, torch.float32).values()) > 2e-2


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
@pytest.mark.filterwarnings("ignore:flash_attention")
def test_a_backend_that_is_not_here_is_never_measured_as_another(tmp_path, monkeypatch, capsys):
    assert available("flash_attention_2") is None and available("sdpa") is not None
    out = tmp_path / "attention.json"
    words: list[str] = [
        "--names",
        "sdpa",
        "eager",
        "flash_attention_2",
        "--lengths",
        "16",
        "--batch",
        "1",
        "--heads",
        "2",
        "--rounds",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["attention", "--out", str(out), *words])
    attention.main()
    assert [r["subject"] for r in json.loads(out.read_text())["results"]] == ["sdpa", "eager"]
    assert "flash_attention_2: left out" in capsys.readouterr().out


def test_nothing_imports_flash_attn_and_the_extra_names_it():
    folders = ("benchmarks", "eval", "examples", "flowlm", "flowmap", "imm", "mtp", "tests", "training")
    files = [ROOT / "leaplm.py", *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    wrong = [file for file in files if re.search(r"^\s*(import|from) flash_attn", file.read_text(), re.MULTILINE)]
    assert not wrong
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith("flash-attn") for line in extras["flash"]) and "flash" not in extras["dev"][0]
