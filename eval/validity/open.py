"""Suites whose answers cannot be listed: a prompt from real text, a check of what follows it.

There is no law to compare with, so only validity is measured, beside that of the real text itself
cut in the same way.
"""

import ast
import codeop
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class OpenCase:
    """A prompt and what really followed."""

    prompt: str
    real: str


@dataclass(frozen=True)
class OpenSuite:
    """cases_of: held-out documents → cases. is_valid(prompt, continuation). max_tokens: drawn a prompt."""

    name: str
    cases_of: Callable[[Iterable[str]], Sequence[OpenCase]]
    is_valid: Callable[[str, str], bool]
    max_tokens: int


def python() -> OpenSuite:
    """Does the continuation of held-out source still parse? It is read up to its last whole line, and may
    stop anywhere between lines: an open bracket or an empty body at the end is no fault."""
    return OpenSuite("python", function_cases, parses, max_tokens=48)


OPEN_SUITES: dict[str, Callable[[], OpenSuite]] = {"python": python}


def function_cases(documents: Iterable[str], num: int = 400, longest: int = 500) -> list[OpenCase]:
    """Functions and classes of the top level, cut at a line near their middle; in order, evenly spread."""
    cases = [case for text in documents for case in _cases_of(text, longest)]
    return list(islice(cases, 0, None, max(1, len(cases) // num)))[:num]


def _cases_of(text: str, longest: int) -> list[OpenCase]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    lines = text.splitlines(keepends=True)
    cases = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.end_lineno is None:
            continue
        source = lines[node.lineno - 1 : node.end_lineno]
        cut = len(source) // 2
        prompt = "".join(source[:cut])
        if cut >= 3 and len(prompt) <= longest:
            cases.append(OpenCase(prompt, "".join(source[cut:] + lines[node.end_lineno :])))
    return cases


def parses(prompt: str, continuation: str) -> bool:
    """A continuation without a whole line has not finished anything, and counts as invalid."""
    whole_lines, newline, _ = continuation.rpartition("\n")
    if not newline:
        return False
    text = prompt + whole_lines + newline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            try:  # None: incomplete, which is no fault; an error: nothing that follows can mend it
                codeop.compile_command(text, symbol="exec")
            except (SyntaxError, ValueError, OverflowError):
                return False
    return True
