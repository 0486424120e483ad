"""Those who take part in a run of these tests: an owner's questions, and nodes on threads."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import msgspec
from security_jobs import model

from manyhands.fleet import messages as m
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.settings.paths import state_dir
from manyhands.wire import Role, dial, known_invite


def ask(server: CentralServer, question: m.Question) -> dict[str, Any]:
    """An owner's question over the wire, as the command line asks it."""
    owner = known_invite(state_dir(), server.address[1], Role.OWNER)
    assert owner is not None
    with dial(owner) as connection:
        answer: dict[str, Any] = msgspec.json.decode(connection.ask(m.encode_question(question)))
    return answer


class NodeThread:
    """A node that trains on a thread of this process; its run must have ended when the ``with`` block does."""

    def __init__(self, server: CentralServer, name: str = "node", **options: Any) -> None:
        self.error: BaseException | None = None
        self.node = TrainingNode(model(), server.address, name=name, **options)
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._train, name=name)

    def __enter__(self) -> NodeThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.ended(20.0), "the node still runs"

    def wait_until_it_computes(self) -> None:
        """Return when the first micro-batch is computed."""
        assert self._first.wait(30.0), self.error

    def ended(self, within_seconds: float) -> bool:
        """Whether it ends in time; `error` says how."""
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def _train(self) -> None:
        try:
            self.node.train(lambda loss, batch: self._first.set())
        except BaseException as error:  # noqa: BLE001  # how it ended is what is asked
            self.error = error
