"""An event loop on a thread of its own, for a service inside a program that has its own flow.

::

    start() ── thread ──▶ service() ── up() ──▶ ... until_closed() ──▶ its end
       └── waits for up(), or raises what kept it from there          ▲
    close() ──────────────────────────────────────────────────────────┘

The service is one coroutine: it calls `up` when it is ready, and leaves when `until_closed` returns. Knows nothing of
what it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class LoopThread:
    """Runs one service; `start` and `close` are for any other thread, `up` and `until_closed` for the service."""

    def __init__(self, name: str, service: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._service = service
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Begin; returns when the service is up. Raises what kept it from that."""
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    def close(self, timeout_seconds: float | None = None) -> None:
        """Let the service end, and wait for it; twice, or before `start`, is fine."""
        if self._loop is not None and self._over is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._over.set)
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    @property
    def is_up(self) -> bool:
        """Whether the service was ready, and nothing kept it from that."""
        return self._up.is_set() and self._failure is None

    @property
    def running(self) -> asyncio.AbstractEventLoop | None:
        """The loop, while the service may be asked for something; None before it began and once it is to end."""
        return None if self._over is None or self._over.is_set() else self._loop

    # ---- on the thread ----

    def up(self) -> None:
        """The service is ready."""
        self._up.set()

    async def until_closed(self) -> None:
        """Wait for `close`."""
        assert self._over is not None
        await self._over.wait()

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - a thread's edge: start() raises it
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        await self._service()
