"""What README.md and docs/*.md name exists: commands and their options as the command line itself reads them, presets,
links and files. And what no test runs is listed here, so that nothing is left out in silence."""

import contextlib
import functools
import io
import re
import shlex

import pytest

import eval.measuring_commands
import eval.writing_commands
import leaplm
import training.cli
from tests.docs.pages import PAGES, ROOT, blocks, commands, joined

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)

NOT_RUN = {
    "estimators.md": ["it takes longer than all other blocks of this page"],
    "images.md": ["hours"],
    "README.md": ["these two set up the repository itself, and the second is what runs this page"],
    "several-machines.md": ["needs eight GPUs", "needs two machines", "needs Slurm"],
    "ten-minutes.md": ["the test runs in an installation that is there already"],
}
NEEDS = {"likelihood.md": ["LEAPLM_DATA"], "lm-eval.md": ["LEAPLM_DATA"]}

TEXT = re.compile(r"```.*?^```|<!--.*?-->", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILES = ("benchmarks", "configs", "docs", "eval", "examples", "flowlm", "flowmap", "imm", "mtp", "tests", "training")


class Parsed(Exception):
    """The options were read: nothing more is wanted."""


def read(words):
    """The words of a `leaplm …` as the command line reads them, and no further. ValueError where it refuses them."""

    def parse(*arguments, **named):
        training.cli.parse(*arguments, **named)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        for module in (leaplm, eval.measuring_commands, eval.writing_commands):
            patch.setattr(module, "parse", parse)
        if words[0] == "lm-eval":
            harness = pytest.importorskip(
                "lm_eval.__main__", reason="lm-eval is not installed: pip install 'leaplm[eval]'"
            )

            def stop(self, args):
                raise Parsed

            patch.setattr(harness.HarnessCLI, "execute", stop)
        if words[0] not in leaplm.COMMANDS:
            raise ValueError(f"unknown command {words[0]!r}")
        try:
            leaplm.COMMANDS[words[0]](words[1:])
        except Parsed:
            pass
        except SystemExit as stop:  # 0 of --help
            if stop.code:
                raise ValueError(f"exit code {stop.code}") from stop


def written(page):
    """(line or block, words) of every `leaplm` command that a page shows, in blocks as they stand and between backticks."""
    for block in blocks(page, shorten=False):
        if block.kind == "shell":
            for _, _, text in commands(joined(block.code)):
                yield block.where, text
    for text in INLINE.findall(TEXT.sub("", page.read_text())):
        if text.startswith("leaplm ") and "…" not in text and not re.search(r"\b(COMMAND|PRESET|NAME)\b", text):
            yield page.name, text


@every_page
def test_every_command_is_one_that_the_command_line_takes(page):
    for where, text in written(page):
        words = shlex.split(text)[1:]
        if words == ["--help"] or (words[:1] == words and words[0] in leaplm.COMMANDS):  # a command named, not given
            continue
        if words[0] == "completion":
            words = ["completion", *words[1:2]]
        try:
            read(words)
        except ValueError as error:
            raise AssertionError(f"{where}: {text}: {error}") from error


@functools.cache
def known_options():
    """Of all commands, as their help names them."""
    said = io.StringIO()
    for name in leaplm.COMMANDS:
        if name == "lm-eval":
            continue
        for more in ([], ["poker"], ["imm-digits"], ["flow-poker"]) if name == "train" else ([],):
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit, ValueError):
                leaplm.COMMANDS[name]([*more, "--help"])
    return set(re.findall(r"--[a-z][\w.-]+", said.getvalue()))


OTHERS = {"--help", "--logdir", "--model", "--multi_gpu", "--num_processes", "--nproc_per_node"}
"""Options of accelerate, torchrun, tensorboard and lm-eval that pages speak of."""


@every_page
def test_every_option_that_is_spoken_of_exists(page):
    for text in INLINE.findall(TEXT.sub("", page.read_text())):
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]+", text):
            assert option in known_options() | OTHERS, f"{page.name}: {text}"


@every_page
def test_every_link_and_every_file_exists(page):
    text = page.read_text()
    for link in LINK.findall(text):
        if not link.startswith(("http://", "https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"
    for name in INLINE.findall(TEXT.sub("", text)):
        if re.fullmatch(rf"({'|'.join(FILES)})/[\w./-]+", name):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@every_page
def test_what_is_not_run_is_known_and_has_its_reason(page):
    found = blocks(page)
    assert [b.skipped for b in found if b.skipped is not None] == NOT_RUN.get(page.name, [])
    assert [b.needs for b in found if b.needs is not None] == NEEDS.get(page.name, [])
    for block in found:
        if block.kind == "data":  # output and settings, no commands in disguise
            assert not re.search(r"^(\$ ?)?(leaplm|pip|python|make|accelerate|torchrun)\b", block.code, re.MULTILINE)
    print(page.name, [f"{b.where}: {b.skipped or b.needs}" for b in found if b.skipped or b.needs])


def test_every_guide_is_on_the_first_page():
    listed = (ROOT / "docs" / "index.md").read_text()
    assert [
        p.name for p in PAGES if p.parent.name == "docs" and p.stem != "index" and f"({p.name})" not in listed
    ] == []


@pytest.mark.parametrize("name", ["add-a-head", "add-an-objective", "add-a-codebook"])
def test_what_is_added_is_shown_in_full_and_short(name):
    """Below 60 lines, and as good as its page says: the page's own tests pass."""
    found = blocks(ROOT / "docs" / f"{name}.md")
    (file,) = [b for b in found if b.kind == "file"]
    assert file.code.count("\n") < 60


@pytest.mark.parametrize("name", ["add-a-head", "add-an-objective", "add-a-codebook"])
def test_what_is_added_passes_its_pages_own_test(name, tmp_path, monkeypatch):
    names = {}
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(ROOT / "docs" / f"{name}.md"):
        if block.kind == "file":
            (tmp_path / block.file).write_text(block.code)
        elif block.kind == "python":
            exec(compile(block.code, block.where, "exec"), names)


def page_of(tmp_path, text):
    file = tmp_path / "page.md"
    file.write_text(text)
    return file


def test_a_page_is_read_as_the_comments_say(tmp_path):
    page = page_of(
        tmp_path,
        "<!-- shortened: train poker --training.steps 9; probe --num 5 -->\n<!-- not run: too large -->\n```sh\nmake\n```\n"
        "```\nleaplm train poker \\\n  --run-dir a   # a comment\nleaplm probe a --suite poker > log | cat\nleaplm train dates\n```\n"
        "```python\n# own.py\nx = 1\n```\n<!-- first: leaplm probe b -->\n",
    )
    made, run, file, first = blocks(page)
    assert (made.skipped, made.kind, run.skipped) == ("too large", "shell", None)
    assert run.code.split("\n")[:3] == [
        "leaplm train poker --run-dir a --training.steps 9 # a comment",
        "leaplm probe a --suite poker --num 5 > log | cat",
        "leaplm train dates",
    ]
    assert (file.kind, file.file) == ("file", "own.py") and first.code == "leaplm probe b --num 5\n" and not first.shown


@pytest.mark.parametrize(
    "text, told",
    [
        ("```ruby\nputs 1\n```\n", "ruby"),
        ('```python title="a"\nprint()\n```\n', "title"),
        ("- a list\n\n  ```sh\n  ls\n  ```\n", "2 fences and 0 blocks"),
        ("~~~sh\nls\n~~~\n", "2 fences and 0 blocks"),
        ("<!-- skip this -->\n```sh\nls\n```\n", "nothing known"),
        ("<!-- not run: too large -->\n", "no block"),
    ],
)
def test_no_block_is_left_out_by_a_slip(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        blocks(page_of(tmp_path, text))


@pytest.mark.parametrize(
    "words",
    ["trian poker", "train pokr", "train poker --training.step 3", "probe a --siute poker", "sample a --stepz 1"],
)
def test_a_wrong_command_would_be_found(words):
    with pytest.raises(ValueError):
        read(words.split())
