"""What every subcommand needs of tyro: its errors as one line, and lists of numbers as one word.

Imported by `leaplm` at start, so it loads nothing heavy itself.
"""

import io
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, Literal

Sampler = Literal[
    "pushforward", "shortcut", "ddim", "euler", "heun", "restart", "ddpm", "ancestral", "jacobi", "picard", "even"
]


@dataclass
class Refining:
    """How images and texts are refined from noise."""

    sampler: Sampler | None = None
    """pushforward (default) tells the network where each jump lands; euler, heun, ddim and ddpm do not. Masked diffusion: ancestral
    (default), or even shares of the blanks a step"""
    guidance: float = 1.0
    """classifier-free guidance, at twice the calls, of images and of texts whose prompts were dropped now and then; 1 is none"""
    self_conditioning: bool | None = None
    """texts: two passes of the network a step, both counted; default: where it was trained so"""
    delay: int | None = None
    """texts trained with noise by token: steps between the starts of two tokens, default 0, all at once"""
    order: Literal["left-to-right", "right-to-left", "random"] | None = None
    """with --delay: which tokens start first, default left-to-right"""
    grid: Literal["even", "clock", "closing"] | None = None
    """texts: steps of one length in time, or between which training looked equally often, also growing shorter towards the text
    (closing); default as it taught: even"""
    renoise: float | None = None
    """texts, with --sampler restart: share of the noise that is fresh after every jump, default 1, all of it"""
    score_temperature: float | None = None
    """texts: of every softmax whose expected code a jump heads for, not of the tokens' own draw: below 1 likelier text, above 1
    more varied; default 1"""


def _comma(text: list[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in text[0].split(",") if part)


def numbers() -> Any:
    """A list of numbers as one word: 1,8,32."""
    import tyro

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,…",
        instance_from_str=_comma,
        is_instance=lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x),
        str_from_instance=lambda x: [",".join(map(str, x))],
    )


def parse(kind: Any, argv: list[str], prog: str, files: Sequence[str] = ("json", "report", "picture", "out")) -> Any:
    """tyro's parse, with its boxed error made one line. files: options that name a file to write."""
    import tyro

    message = io.StringIO()
    try:
        with redirect_stderr(message):
            args = tyro.cli(kind, args=argv, prog=prog, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_one_line(message.getvalue())} (see {shlex.join(prog.split()[:3])} --help)") from None
    for name in files:  # before hours of work, not after
        path = getattr(args, name, None)
        if path is not None and path.is_dir():
            raise ValueError(f"--{name} {path} is a folder: name a file")
    return args


def _one_line(boxed: str) -> str:
    """tyro's message without its box, drawn in Unicode or in ASCII: title, message, rule, hints."""
    rows = [re.sub(r"^[│|]|[│|]$", "", line.strip()).strip() for line in boxed.splitlines()]
    sections = re.split(r"\n[─-]{5,}\n", "\n".join(row for row in rows if row))
    if "\n" in sections[0]:  # a Unicode box has its title in its upper edge
        sections[0] = sections[0].split("\n", 1)[1]
    elif len(sections) > 1:
        sections = sections[1:]
    text = " ".join(sections[0].split())
    unknown = re.match(r"Unrecognized options: ([^ ,]+)", text)
    if unknown:
        near = re.search(r"(--[\w.-]+)", sections[1]) if len(sections) > 2 else None
        return f"unknown option {unknown[1]}" + (f"; did you mean {near[1]}?" if near else "")
    refused = re.match(
        r"Error parsing (?:config\.)?(\w+): .* for \w+ (\w+) (.*) \[type=.*?input_value=(.*), input_type", text
    )
    if refused:
        section, name, why, value = refused.groups()
        return f"{section}.{name} = {value}: {why[0].lower()}{why[1:]}"
    return text
