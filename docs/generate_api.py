"""Writes docs/api.md from the docstrings of the public names. ``--check`` only says whether it is up to date."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import manyhands
from manyhands import errors, testing

PAGE = Path(__file__).parent / "api.md"
OPENING = """# API

Made from the docstrings by `docs/generate_api.py`; change those, not this page. [classes.md](classes.md) has the
arguments of the two main classes as tables.
"""


def page() -> str:
    """The whole page."""
    names = [name for name in manyhands.__all__ if not name.startswith("_")]
    values = {name: getattr(manyhands, name) for name in names}
    ours = {name: value for name, value in values.items() if not is_error(value)}
    tests = {name: getattr(testing, name) for name in testing.__all__}
    parts = [
        OPENING,
        *(section(f"manyhands.{name}", ours[name]) for name in sorted(ours)),
        error_section(),
        "## manyhands.testing\n",
        text_of(testing) + "\n",
        *(section(f"manyhands.testing.{name}", tests[name], level=3) for name in sorted(tests)),
    ]
    return "\n".join(parts)


def is_error(value: Any) -> bool:
    """Whether it is one of the tree of errors."""
    return inspect.isclass(value) and issubclass(value, errors.ManyhandsError)


def section(name: str, value: Any, level: int = 2) -> str:
    """One class with its methods, or one function."""
    mark = "#" * level
    call = name.rpartition(".")[2]
    lines = [f"{mark} {name}\n", signature(call, value), text_of(value), ""]
    members = methods(value) if inspect.isclass(value) else {}
    for method, found in members.items():
        if isinstance(found, property):
            lines += [f"{mark}# `.{method}`\n", text_of(found.fget), ""]
        else:
            lines += [f"{mark}# `.{method}`\n", signature(method, found), text_of(found), ""]
    return "\n".join(lines)


def methods(value: type) -> dict[str, Any]:
    """Public methods and properties that the class defines itself, in the order of its source."""
    return {
        name: found
        for name, found in vars(value).items()
        if not name.startswith("_") and (inspect.isfunction(found) or isinstance(found, property))
    }


def signature(name: str, value: Any) -> str:
    """A fenced signature: on one line where it fits, else an argument a line."""
    found = inspect.signature(value)
    arguments = [p for p in found.parameters.values() if p.name != "self"]
    returns = found.return_annotation
    arrow = "" if inspect.isclass(value) or returns is inspect.Signature.empty else f" -> {plain(returns)}"
    written = written_arguments(arguments)
    line = f"{name}({', '.join(written)}){arrow}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {argument}," for argument in written), f"){arrow}"])
    return f"```text\n{line}\n```\n"


def written_arguments(arguments: list[inspect.Parameter]) -> list[str]:
    """Arguments as source has them, with the star before those given by name only."""
    written: list[str] = []
    for argument in arguments:
        if argument.kind is argument.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        text = argument.name
        if argument.annotation is not argument.empty:
            text += f": {plain(argument.annotation)}"
        if argument.default is not argument.empty:
            text += f" = {argument.default!r}"
        written.append(text)
    return written


def plain(annotation: Any) -> str:
    """An annotation as source has it."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def error_section() -> str:
    """The tree of errors as its module draws it, then each one's sentence."""
    rows = [
        f"- `{name}`: {text_of(value)}".replace("\n\n", " ").replace("\n", " ")
        for name, value in vars(errors).items()
        if is_error(value)
    ]
    return "\n".join(["## Errors\n", text_of(errors), "", *rows, ""])


def text_of(value: Any) -> str:
    """A docstring as Markdown: literals, roles, and the pictures after a double colon."""
    text = inspect.getdoc(value) or ""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"(?m)^::$", ":", text)
    text = re.sub(r"(?m):?:\n\n((?:(?: {4}.*)?\n)*(?: {4}.*))", fenced, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fenced(match: re.Match[str]) -> str:
    """An indented block after ``::`` as a fenced one."""
    lines = [line[4:] for line in match[1].splitlines()]
    return "\n```text\n" + "\n".join(lines).strip("\n") + "\n```"


def main() -> int:
    """Write the page, or check it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is old")
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
