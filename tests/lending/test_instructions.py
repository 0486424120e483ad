"""Machines with more instructions than the run's coordinator compute with the coordinator's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lent import coordinator, join

from manyhands.errors import ProtocolError
from manyhands.settings.instructions import announced, pins

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
_ALONE = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from jobs import build
from manyhands.pool.target import parts_of, run_reference
print(torch.backends.cpu.get_cpu_capability(), run_reference(parts_of(build())).weights_sha256)
"""


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in (*AVX2, "MKL_CBWR"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_with_more_is_held_to_the_runs_level():
    assert pins({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX512") == AVX2


def test_a_machine_of_the_same_level_starts_nothing_again():
    assert pins(announced("AVX2"), "AVX2") == {}


def test_a_machine_with_less_cannot_be_helped():
    assert pins({"ATEN_CPU_CAPABILITY": "avx512"}, "AVX2") == {}


def test_what_the_coordinators_environment_names_is_told_and_followed(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    wanted = announced("AVX512")
    monkeypatch.delenv("MKL_CBWR")
    assert pins(wanted, "AVX512") == {"MKL_CBWR": "AVX2"}


@pytest.mark.parametrize(
    "wanted", [{"LD_PRELOAD": "x.so"}, {"MKL_CBWR": "; rm"}, {"ATEN_CPU_CAPABILITY": "AVX2"}]
)
def test_names_and_values_of_no_table_are_refused(wanted):
    with pytest.raises(ProtocolError, match=next(iter(wanted))):
        pins(wanted, "AVX512")


@pytest.mark.slow
def test_a_joined_machine_gives_the_bits_of_a_narrower_coordinator(tmp_path, monkeypatch):
    for name, value in AVX2.items():
        monkeypatch.setenv(name, value)
    jobs = str(Path(__file__).parents[1] / "testing")
    alone = subprocess.run([sys.executable, "-c", _ALONE, jobs], capture_output=True, text=True, check=True)
    level, sha256 = alone.stdout.split()
    assert level == "AVX2"
    with coordinator(numerics="strict") as cluster:
        for name in AVX2:
            monkeypatch.delenv(name)
        with join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
            report = cluster.wait(90)
            assert joined.ends() == 0, joined.errors
    assert "the run's instructions" in joined.errors
    assert all("avx2" in name for name in report["numeric_classes"])
    assert report["weights_sha256"] == sha256
