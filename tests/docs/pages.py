"""What README.md and docs/*.md hold, read for the tests: fenced blocks, and the comments that say how they are run.

    <!-- not run: REASON -->            the next block is not run
    <!-- needs: VARIABLE -->            the next block is run where this variable of the environment is set
    <!-- shortened: train poker --training.steps 9; probe --num 50 -->
                                        from here on, the commands that begin so have these options behind their own
    <!-- note: … -->                    for the reader of the source
    <!-- first: … -->                   shell that is run here and not shown; <!-- first, python: … --> the same in Python

A block whose first line is `# NAME.py` (or another ending) is a file of that name. Blocks without a language are shell.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL, PYTHON, DATA = ("", "sh", "bash"), ("python",), ("text", "yaml", "json", "{toctree}")
"""What is run, and what is only read; no other language is known."""

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$|<!--\s*(.*?)\s*-->", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# ([\w.-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """kind: shell, python, file or data. skipped: why it is not run. needs: a variable. shown: False for `first`."""

    page: str
    line: int
    kind: str
    code: str
    skipped: str | None = None
    needs: str | None = None
    file: str | None = None
    shown: bool = True

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path, shorten: bool = True) -> list[Block]:
    """Of one page, in order."""
    text, page = path.read_text(encoding="utf-8"), path.name
    found: list[Block] = []
    said: dict[str, str] = {}
    options: list[tuple[str, str]] = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match[3] is not None:
            key, _, value = match[3].partition(":")
            if key.strip() in ("not run", "needs"):
                said[key.strip()] = " ".join(value.split())
            elif key.strip() == "shortened":
                options += [_shortening(part) for part in value.split(";")]
            elif key.strip() in ("first", "first, python"):
                kind = "python" if "python" in key else "shell"
                code = value.strip() + "\n"
                code = _shortened(code, options) if kind == "shell" and shorten else code
                found.append(Block(page, line, kind, code, shown=False))
            elif key.strip() != "note":
                raise ValueError(f"{page}:{line}: a comment that says nothing known: {match[3][:40]!r}")
            continue
        kind = _kind(match[1], f"{page}:{line}")
        named = NAME.match(match[2])
        code = _shortened(match[2], options) if kind == "shell" and shorten else match[2]
        if named:
            kind = "file"
        found.append(
            Block(page, line, kind, code, said.pop("not run", None), said.pop("needs", None), named and named[1])
        )
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    read = sum(block.shown for block in found)
    if fences != 2 * read:
        raise ValueError(
            f"{page}: {fences} fences and {read} blocks: each begins and ends with ``` in the first column"
        )
    if said:
        raise ValueError(f"{page}: a comment stands before no block: {said}")
    return found


def _kind(language: str, where: str) -> str:
    for kind, names in (("shell", SHELL), ("python", PYTHON), ("data", DATA)):
        if language in names:
            return kind
    raise ValueError(f"{where}: a block in {language!r}; known are {', '.join((*SHELL[1:], *PYTHON, *DATA))}")


def _shortening(part: str) -> tuple[str, str]:
    """The words that a command begins with, and the options for it."""
    words, dashes, rest = " ".join(part.split()).partition(" --")
    return words, dashes.strip() + rest


def commands(code: str) -> list[tuple[int, int, str]]:
    """Each `leaplm …` of a block, up to its comment, pipe or redirection: start, end, its words. Lines joined before."""
    pattern = re.compile(r"(?<![\w./-])leaplm (?=[a-z])[^#|&;>\n)]*")
    return [(m.start(), m.end(), m.group().strip()) for m in pattern.finditer(code)]


def joined(code: str) -> str:
    return re.sub(r"[ \t]*\\\n\s*", " ", code)


def _shortened(code: str, options: list[tuple[str, str]]) -> str:
    code = joined(code)
    for _, end, words in reversed(commands(code)):
        own = words.removeprefix("leaplm ") + " "
        more = " ".join(extra for start, extra in options if own.startswith(start + " "))
        if more:
            kept, rest = code[:end].rstrip(), code[end:]
            code = f"{kept} {more}{'' if rest[:1] in ('', chr(10)) else ' '}{rest}"
    return code
