"""Public sets by name, from files like the published ones."""

import gzip
import subprocess

import pytest

import leaplm
from training.completion import script
from training.config import DataConfig
from training.data.corpus import _read_splits
from training.data.known import KNOWN, KnownSet, get, local_paths, pages, read_known, speeches


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write(text)


def test_a_page_starts_at_its_title_and_a_section_does_not():
    lines = ["", " = One = ", "", " text = 3 ", " = = Part = = ", " more ", " = Two = ", " end "]
    assert list(pages(lines)) == ["", " = One = \n\n text = 3 \n = = Part = = \n more ", " = Two = \n end "]


def test_nothing_is_lost_where_a_text_is_cut():
    text = "\n\n".join(f"A{i}:\nwords {i}" for i in range(120))
    assert "\n\n".join(speeches(text.splitlines())) == text and len(list(speeches(text.splitlines()))) == 3


def test_a_set_is_read_by_name_in_its_own_splits(tmp_path):
    for part in ("train", "valid", "test"):
        put(tmp_path / "wikitext2" / f"{part}.txt.gz", f" \n = {part} = \n \n words of {part} \n")
    splits = _read_splits(DataConfig(name="wikitext2", root=str(tmp_path)))
    assert {k: len(v) for k, v in splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert "words of valid" in splits["validation"][0]


def test_a_set_without_splits_is_cut_in_order(tmp_path):
    put(tmp_path / "tinyshakespeare" / "input.txt.gz", "\n\n".join(f"S{i}" for i in range(2000)))
    splits = read_known(KNOWN["tinyshakespeare"], str(tmp_path))
    assert [len(splits[k]) for k in ("train", "validation", "test")] == [36, 2, 2]
    assert splits["train"][0].startswith("S0\n") and splits["test"][-1].endswith("S1999")


def test_get_fetches_once_and_leaves_no_half_files(tmp_path):
    source = tmp_path / "published.txt"
    source.write_text("one\n\ntwo\n")
    rows = {"data_files": str(source), "split": "train"}
    for home in ({"all": ("text", rows)}, {"all": (source.as_uri(), {})}):
        known = KnownSet("toy", "a toy", "none", {"all": "toy/t.txt.gz"}, home, speeches)
        root = tmp_path / f"root-{len(home['all'][1])}"
        root.mkdir()
        assert local_paths(known, str(root)) is None
        path = get(known, str(root))["all"]
        assert gzip.decompress(path.read_bytes()) == b"one\n\ntwo\n" and not list(root.rglob("*.partial"))
    source.unlink()
    assert get(known, str(root))["all"] == path and local_paths(known, str(root)) == {"all": path}
    gone = KnownSet("gone", "", "", {"all": "gone.gz"}, home, speeches)
    with pytest.raises(ValueError, match="did not load"):
        get(gone, str(root))


def test_data_list_says_what_is_here(tmp_path, capsys):
    out = tmp_path / "l.json"
    assert leaplm.main(["data", "list", "--root", str(tmp_path), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "wikitext2         not here" in text and "stdlib            always" in text and out.exists()
    assert leaplm.main(["data", "get", "wikitext3"]) == 2 and "known are" in capsys.readouterr().err
    assert leaplm.main(["data", "list", "--root", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    "words, expected",
    [("leaplm pr", ["probe"]), ("leaplm train poker-d", ["poker-draw"]), ("leaplm probe r --suite bra", ["brackets-8", "brackets-16"])],
)  # fmt: skip
def test_the_bash_script_completes(words, expected):
    parts = words.split(" ")
    line = " ".join(f'"{part}"' for part in parts)
    program = (
        script("bash", leaplm.COMMANDS)
        + f"COMP_WORDS=({line}); COMP_CWORD={len(parts) - 1}; _leaplm; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
