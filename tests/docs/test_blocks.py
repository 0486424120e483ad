"""Nothing on a page is typed in vain: blocks compile or run, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Block, blocks, every, files, options

MARKERS = re.compile(r"(compile|run|run after \S+|file \S+)?")
KINDS = {"python", "console", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_of_known_kinds_and_markers_stand_before_blocks(page):
    found = blocks(page)
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(found)
    assert {block.kind for block in found} <= KINDS
    assert all(MARKERS.fullmatch(block.marker) for block in found)
    assert text.count("<!-- test:") == sum(bool(block.marker) for block in found)


@pytest.mark.parametrize("block", every("python"), ids=str)
def test_python_compiles(block: Block):
    # A notebook's cell may await.
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", [b for b in every("python") if b.marker == "run"], ids=str)
def test_what_is_marked_so_runs(block: Block, tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-c", block.text], cwd=tmp_path, env=environment, capture_output=True, timeout=90
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("block", every("console"), ids=str)
def test_commands_exist(block: Block):
    assert block.commands
    for command in block.commands:
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
        check_command(block, Path(words[0]).name, words[1:])


def check_command(block: Block, name: str, words: list[str]) -> None:
    if name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets, words
    elif name == "python":
        assert words[0] in files(block.page) or (ROOT / words[0]).is_file(), words
    elif name == "manyhands":
        check_verb(words)
    else:
        assert name in {
            "git",
            "cd",
            "cp",
            "export",
            "source",
            "pip",
            "docker",
            "kubectl",
            "sbatch",
            "srun",
        }, name


def check_verb(words: list[str]) -> None:
    verbs = [word for word in words if re.fullmatch(r"[a-z]+", word)]
    path = tuple(verbs[:2] if verbs[:1] == ["config"] else verbs[:1])
    if path:
        listed = re.search(rf"^\s+{path[0]}\s+(.*)$", help_of(()), re.MULTILINE)
        assert listed, f"there is no manyhands {path[0]}"
    known = help_of(path)
    assert all(option in known for option in options(words)), words


@cache
def help_of(path: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "manyhands", *path, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        goal = (page.parent / place).resolve() if place else page
        assert goal.exists(), f"{target} in {page.name}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "design"
    listed = re.findall(r"\((\d{4}-[a-z-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
