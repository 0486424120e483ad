"""Whatever comes instead of a program is refused, in a child that would show it if it did more than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import all_hostile, enveloped, honest, judge
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import ProgramRefused
from manyhands.programs.format import HEADER
from manyhands.programs.parser import parse

HERE = Path(__file__).parent
MILLISECONDS = 100
KIB = 16_384


@pytest.fixture(scope="module")
def judged() -> dict[str, tuple[float, int, str | None, list[str]]]:
    """What a child said of each hostile program: milliseconds, KiB of growth, refusal, audit events."""
    child = subprocess.run(
        [sys.executable, str(HERE / "hostile.py")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    return {
        name: (milliseconds, grown, refusal, events) for name, milliseconds, grown, refusal, events in lines
    }


@pytest.mark.parametrize("name", [name for name, _ in all_hostile()])
def test_it_is_refused_at_once_without_memory_files_or_code(judged, name):
    milliseconds, grown, refusal, events = judged[name]
    assert refusal
    assert milliseconds < MILLISECONDS
    assert grown < KIB
    assert events == []


def test_the_honest_program_they_were_made_from_is_taken():
    assert judge(honest()).parameters[0].name == "0.weight"


def test_a_refusal_names_the_node():
    build_bytes = dict(all_hostile())["operator 'add.out'"]
    with pytest.raises(
        ProgramRefused, match=r"node 0 \('add.out'\) of train: .* does not have it"
    ) as refused:
        parse(build_bytes)
    assert refused.value.node == 0
    assert refused.value.exit_code == 4


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_refused(noise):
    for data in (noise, enveloped(noise)):
        with pytest.raises(ProgramRefused):
            parse(data)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_program_with_bytes_changed_is_the_same_kind_of_thing_or_refused(data):
    whole = bytearray(honest())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        judge(bytes(whole))
    except ProgramRefused:
        return


@given(st.integers(0, len(honest()) - 1))
def test_a_program_cut_short_is_refused(length):
    with pytest.raises(ProgramRefused):
        parse(honest()[:length])


def test_another_version_is_refused_by_its_number():
    data = honest()
    with pytest.raises(ProgramRefused, match="format version 2, this machine reads 1"):
        parse(HEADER.pack(b"MHPG", 2, len(data) - HEADER.size) + data[HEADER.size :])
