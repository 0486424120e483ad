"""The code blocks of the project's pages, with what each one's marker asks of it.

::

    <!-- test: file NAME -->        written into the page's folder of files
    <!-- test: run -->              run, in a process of its own
    <!-- test: run after NAME -->   run in the folder where the page's story has been played
    (nothing, or: compile)          compiled
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<marker>[^>]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_OPTION = re.compile(r"--[a-z][a-z-]*")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    kind: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """What a console block says is typed."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("text")), m["kind"], m["marker"] or "", m["text"])
        for m in _BLOCK.finditer(text)
    ]


def every(kind: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.kind == kind]


def files(page: Path) -> dict[str, str]:
    """The files that a page has its reader make."""
    marked = [block for block in blocks(page) if block.marker.startswith("file ")]
    return {block.marker.removeprefix("file "): block.text for block in marked}


def options(words: list[str]) -> list[str]:
    return [word for word in words if _OPTION.fullmatch(word)]
