"""The door of the side that dials."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, Unreachable
from manyhands.fleet.channels import Dialled, Lost
from manyhands.fleet.dialling import Dialler
from manyhands.split.doors.guests import Guest, NewGuest, OnFailure
from manyhands.wire import delays


class DiallingDoor:
    """Dials one address until its guest is done; nobody there is a reason to wait."""

    def __init__(
        self,
        dialler: Dialler,
        where: str,
        clock: Clock,
        patience_seconds: float,
        attempts: int | None = None,
    ) -> None:
        self._dialler = dialler
        self._where = where
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._attempts = attempts
        self._trouble = "it was not dialled yet"
        self._closing = threading.Event()
        self._gone = threading.Event()
        self._channel: Dialled[Any] | None = None
        self._thread: threading.Thread | None = None

    def start(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        """Begin to dial."""
        self._thread = threading.Thread(
            target=self._main, args=(new_guest, on_failure), name="manyhands-door", daemon=True
        )
        self._thread.start()

    def whom(self) -> str:
        """See `Door`."""
        return f"{self._where} ({self._trouble})"

    def close(self) -> None:
        """See `Door`."""
        self._closing.set()
        self._gone.set()
        channel = self._channel
        if channel is not None:
            channel.close()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the door's thread ----

    def _main(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        try:
            self._dial_on(new_guest)
        except ManyhandsError as error:
            if not self._closing.is_set():
                on_failure(error)
        finally:
            self._dialler.release()

    def _dial_on(self, new_guest: NewGuest) -> None:
        waits, since, failed = delays(random.Random(os.getpid())), self._clock.monotonic(), 0
        while not self._closing.is_set():
            guest = new_guest()
            try:
                self._attend(guest)
                waits, since, failed = delays(random.Random(os.getpid())), self._clock.monotonic(), 0
            except Unreachable as error:
                self._trouble = str(error)
                failed += 1
                is_late = self._clock.monotonic() - since > self._patience_seconds
                if is_late or (self._attempts is not None and failed >= self._attempts):
                    raise
            if guest.is_done:
                return
            self._closing.wait(next(waits))

    def _attend(self, guest: Guest) -> None:
        """One connection, from its dial to its end."""
        connection = self._dialler.dial()
        try:
            self._gone.clear()

            def deliver(message: Any, tree: Any) -> None:
                guest.deliver(message, tree)
                if isinstance(message, Lost):
                    self._trouble = str(message.error)
                    self._gone.set()

            channel: Dialled[Any] = Dialled(connection.stream(), guest.parcels, deliver)
            self._channel = channel
            guest.opened(channel)
            channel.start()
            if self._closing.is_set():
                channel.close()
            self._gone.wait()
            channel.close()
        finally:
            self._channel = None
            connection.close()
