"""The pages that describe the code say what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest
from pages import ROOT

from manyhands import (
    BossMan,
    CentralServer,
    ColabGPUTrainer,
    CPULoader,
    GPUTrainer,
    RemoteLoader,
    Report,
    TrainingNode,
)
from manyhands.launch import session

TABLES = [
    CentralServer,
    TrainingNode,
    CPULoader,
    CPULoader.setup_dataset,
    CPULoader.start_loading,
    CPULoader.run_validation,
    CPULoader.run_inference,
    GPUTrainer,
    GPUTrainer.setup_model,
    RemoteLoader,
    ColabGPUTrainer,
    BossMan,
    BossMan.setup_host,
    BossMan.train_batch,
    session,
]

CLASSES = (ROOT / "docs" / "classes.md").read_text(encoding="utf-8")


def tables(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, as cells."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", CLASSES, re.MULTILINE | re.DOTALL)
    assert found, heading
    first = re.search(r"(?:^\|.*\n)+", found[1], re.MULTILINE)
    assert first, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in first[0].splitlines()[2:]]


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__qualname__)
def test_every_argument_is_documented_with_its_default(kind):
    parameters = [p for p in inspect.signature(kind).parameters.values() if p.name != "self"]
    stated = [(row[0].strip("`"), row[1].strip("`")) for row in tables(kind.__name__)]
    actual = [(p.name, "" if p.default is p.empty else repr(p.default)) for p in parameters]
    assert stated == actual


def test_every_field_of_the_report_is_documented():
    stated = [name for row in tables("Report") for name in re.findall(r"`(\w+)`", row[0])]
    assert stated == [field.name for field in dataclasses.fields(Report)]


def test_every_key_of_the_status_is_documented():
    stated = {name for row in tables("Status") for name in re.findall(r"`(\w+)`", row[0])}
    assert stated == set(CentralServer(None, None).status())


def test_the_api_page_is_up_to_date():
    command = [sys.executable, str(ROOT / "docs" / "generate_api.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"run {' '.join(command[:-1])}\n{done.stderr}"
