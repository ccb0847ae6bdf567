"""Public text sets by name: what each is, where it comes from, and how its text becomes documents.

A set lies as plain files under one folder (`--data.root`, LEAPLM_DATA, or the cache), in the form in
which it is published; `get` puts it there. Its own splits are kept; one without any is cut in order.
"""

import gzip
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

SHARES = (0.9, 0.95, 1.0)
"""Where a set without splits of its own is cut: train, validation, test, in the order of its text."""
STDLIB_LICENCE = "PSF"
TITLE = re.compile(r"^\s*= [^=]+ =\s*$")


@dataclass(frozen=True)
class KnownSet:
    """files: split → path under the root; one file named "all" is cut by SHARES. home: split → a URL of plain
    text, or what `datasets` loads it from. documents: lines → documents."""

    name: str
    what: str
    licence: str
    files: dict[str, str]
    home: dict[str, tuple[str, dict[str, str]]]
    documents: Callable[[Iterable[str]], Iterator[str]]


def pages(lines: Iterable[str]) -> Iterator[str]:
    """A page starts at its title: ` = Title = `."""
    page: list[str] = []
    for line in lines:
        if TITLE.match(line) and page:
            yield "\n".join(page)
            page = []
        page.append(line)
    yield "\n".join(page)


def speeches(lines: Iterable[str], together: int = 50) -> Iterator[str]:
    """Fifty speeches, which blank lines part, are a document."""
    paragraphs = "\n".join(lines).split("\n\n")
    for low in range(0, len(paragraphs), together):
        yield "\n\n".join(paragraphs[low : low + together])


def stretches(lines: Iterable[str], length: int = 30_000) -> Iterator[str]:
    """Text without documents, cut every so many characters."""
    text = "\n".join(lines)
    for low in range(0, len(text), length):
        yield text[low : low + length]


def _hub(name: str, subset: str, **splits: str) -> dict[str, tuple[str, dict[str, str]]]:
    return {own: (name, {"name": subset, "split": split}) for own, split in splits.items()}


def _url(url: str, **options: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Of plain text, or of a zip with one file of it. characters: how many of it are taken."""
    return {"all": (url, options)}


KNOWN = {
    known.name: known
    for known in (
        KnownSet(
            "wikitext2",
            "WikiText-2, tokenised with <unk>: 2.1 M words of Wikipedia, a document a page (1609.07843)",
            "CC BY-SA",
            {"train": "wikitext2/train.txt.gz", "validation": "wikitext2/valid.txt.gz", "test": "wikitext2/test.txt.gz"},
            _hub("Salesforce/wikitext", "wikitext-2-v1", train="train", validation="validation", test="test"),
            pages,
        ),
        KnownSet(
            "tinyshakespeare",
            "1.1 M characters of plays, a document fifty speeches; the last tenth is held out",
            "public domain",
            {"all": "tinyshakespeare/input.txt.gz"},
            _url("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"),
            speeches,
        ),
        KnownSet(
            "text8-prefix",
            "the first 3,000,000 characters of text8: Wikipedia in 27 symbols; the last tenth is held out",
            "CC BY-SA",
            {"all": "text8_prefix/text8_first3000000.txt.gz"},
            _url("http://mattmahoney.net/dc/text8.zip", characters="3000000"),
            stretches,
        ),
    )
}  # fmt: skip


def data_root(root: str | None) -> Path:
    """The folder of public sets: asked for, LEAPLM_DATA, or beside the corpora."""
    named = root or os.environ.get("LEAPLM_DATA")
    if root and not Path(root).expanduser().is_dir():
        raise ValueError(f"data.root {root!r} is no folder")
    return Path(named or os.environ.get("LEAPLM_CACHE", "~/.cache/leaplm") + "/data").expanduser()


def local_paths(known: KnownSet, root: str | None) -> dict[str, Path] | None:
    """split → file, if the whole set is here."""
    paths = {split: data_root(root) / path for split, path in known.files.items()}
    return paths if all(path.is_file() for path in paths.values()) else None


def read_known(known: KnownSet, root: str | None) -> dict[str, list[str]]:
    """split → documents; fetched first where it is not here."""
    paths = local_paths(known, root) or get(known, root)
    parts = {split: [d for d in known.documents(_lines(path)) if d.strip()] for split, path in paths.items()}
    if "all" not in parts:
        return parts
    documents = parts["all"]
    cuts = [0, *(round(share * len(documents)) for share in SHARES)]
    return {split: documents[cuts[i] : cuts[i + 1]] for i, split in enumerate(("train", "validation", "test"))}


def get(known: KnownSet, root: str | None) -> dict[str, Path]:
    """Fetch a set from where it is published and keep it under the root. Half a file is never left."""
    paths = {split: data_root(root) / path for split, path in known.files.items()}
    for split, path in paths.items():
        if path.is_file():
            continue
        try:
            lines = _published(*known.home[split])
            path.parent.mkdir(parents=True, exist_ok=True)
        except Exception as error:  # readers and networks fail in as many ways as there are
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{known.name} is not under {data_root(root)} and did not load: {reason}") from error
        partial = path.with_name(path.name + ".partial")
        with gzip.open(partial, "wt", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        partial.replace(path)
    return paths


def _published(source: str, options: dict[str, str]) -> list[str]:
    if "://" in source:
        with urlopen(source, timeout=60) as answer:
            data = answer.read()
        if source.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                data = packed.read(packed.namelist()[0])
        most = options.get("characters")
        return data.decode("utf-8")[: int(most) if most else None].splitlines()
    from datasets import load_dataset

    return [row["text"].rstrip("\n") for row in load_dataset(source, **options)]


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")
