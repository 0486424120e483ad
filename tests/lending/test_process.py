"""How a compute process ended, as a person reads it; and a channel whose child says what it may not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from manyhands.pool.lending.channel import HungUp
from manyhands.pool.lending.process import ComputeProcess
from manyhands.pool.lending.words import Kind, Order, Ready, unpack


def started(**other: object) -> ComputeProcess:
    given = {"name": "n", "device": "cpu", "cpus": (), "memory_bytes": 1 << 40, "verbose": False, **other}
    child = ComputeProcess(Order(descriptors=(0, 0, 0), **given))
    child.start()
    return child


def test_one_that_is_killed_by_the_watchdog_says_why():
    child = started()
    child.kill("it showed no progress for 121 s")
    assert child.sentence() == (
        "the compute process was stopped by its watchdog: it showed no progress for 121 s"
    )
    with pytest.raises(HungUp):
        child.channel.receive()
    child.close()


def test_one_that_fails_before_it_is_ready_says_its_last_line():
    child = started(cpus=(100_000,))
    with pytest.raises(HungUp):
        child.channel.receive()
    assert "ended by itself (exit code 1): " in child.sentence()
    child.close()


def test_it_begins_with_its_device_and_asks_for_a_stream():
    child = started()
    kind, body = child.channel.receive()
    assert (kind, unpack(body, Ready).device) == (Kind.READY, "cpu")
    assert child.channel.receive() == (Kind.DIAL, b"")
    assert not child.is_stopped
    child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process allocates")
def test_too_little_memory_is_an_error_and_no_crash():
    code = """if True:
        import torch
        from manyhands.pool.lending import limits
        from manyhands.pool.lending.compute import _is_memory
        limits.limit_memory(1 << 30)
        try:
            torch.ones(1 << 30)
        except Exception as error:
            print(_is_memory(error), _is_memory(ValueError("no")))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr
