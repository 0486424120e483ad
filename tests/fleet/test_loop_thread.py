"""A service with an event loop of its own: up, closed, or kept from it."""

from __future__ import annotations

import asyncio

import pytest

from manyhands.errors import UsageError
from manyhands.fleet.loopthread import LoopThread


def test_it_is_up_when_start_returns_and_over_when_close_does() -> None:
    told: list[str] = []

    async def service() -> None:
        told.append("began")
        thread.up()
        await thread.until_closed()
        told.append("ended")

    thread = LoopThread("a service", service)
    assert not thread.is_up
    assert thread.running is None
    thread.start()
    assert told == ["began"]
    assert thread.is_up
    loop = thread.running
    assert loop is not None
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "asked"), loop).result() == "asked"
    thread.close()
    assert told == ["began", "ended"]
    assert thread.running is None
    thread.close()


def test_what_keeps_it_from_that_is_raised() -> None:
    async def service() -> None:
        raise UsageError("the port is in use")

    thread = LoopThread("a service", service)
    with pytest.raises(UsageError, match="in use"):
        thread.start()
    assert not thread.is_up
    thread.close()


def test_one_that_never_began_is_closed_too() -> None:
    async def service() -> None:
        raise AssertionError("nobody started it")

    LoopThread("a service", service).close()
