"""Asking a running coordinator as its owner: which one, by which invite. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from manyhands.errors import Refused, Unreachable, UsageError
from manyhands.wire.admission import Role

if TYPE_CHECKING:
    from manyhands.fleet.messages import Question
    from manyhands.wire import Connection, NodeKey

DEFAULT_PORT = 5555

InviteArgument = Annotated[
    str | None,
    typer.Argument(metavar="INVITE", help="An mh:// line or @FILE; without one, your coordinator here."),
]
PortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help=f"Port of your coordinator here.  [default: {DEFAULT_PORT}]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]


class Desk:
    """One coordinator's unary door; `close` leaves it.

    Asks with a key of this user's that stays the same, so that an invite for two machines lets this one ask
    a thousand times.
    """

    def __init__(self, invite: str | None, port: int | None) -> None:
        self._invite = invite
        self._port = port
        self._key: NodeKey | None = None
        self._connection: Connection | None = None

    def ask(self, question: Question) -> dict[str, Any]:
        """The answer to one of fleet.messages' questions.

        A connection that was idle may be closed in the very moment it is used: then it is dialled once more.
        """
        from manyhands.fleet.messages import encode_question

        request, is_new = encode_question(question), self._connection is None
        try:
            return self._answer(request)
        except Unreachable:
            if is_new:
                raise
            self.close()
            return self._answer(request)

    def close(self) -> None:
        """End the connection; a later question opens another."""
        if self._connection is not None:
            self._connection.close()
        if self._key is not None:
            self._key.release()
        self._connection = self._key = None

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, request: bytes) -> dict[str, Any]:
        if self._connection is None:
            self._connection = self._dial()
        answer: dict[str, Any] = msgspec.json.decode(self._connection.ask(request))
        return answer

    def _dial(self) -> Connection:
        from manyhands.settings import ensure_state_dir, load, state_dir
        from manyhands.wire import NodeKey, dial, find_invite

        settings = load()
        given = settings.invite.get_secret_value() if settings.invite else None
        port = self._port if self._port is not None else usual_port()
        try:
            invite = find_invite(self._invite, given, state_dir(), port, Role.OWNER)
        except Refused:  # a node's advice, a line of the role node, would not help here
            raise Refused(
                f"no coordinator of yours runs here on port {port}, and no invite was given: `manyhands serve TARGET` "
                "starts one; for one elsewhere, `manyhands invite --role observer` on its machine prints a line"
            ) from None
        self._key = NodeKey.claim(ensure_state_dir() / "owner-keys")
        return dial(invite, key=self._key, timeout_seconds=settings.network.timeout)


def usual_port() -> int:
    """5555, or the port of the only coordinator of this user here."""
    from manyhands.settings import state_dir
    from manyhands.wire import known_ports

    ports = known_ports(state_dir())
    if DEFAULT_PORT in ports or not ports:
        return DEFAULT_PORT
    if len(ports) > 1:
        raise UsageError(f"port: your coordinators here listen on {', '.join(map(str, ports))}; give --port")
    return ports[0]


def check_exclusive(**given: Any) -> None:
    """UsageError where more than one of these options was given."""
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} do not go together: one at a time")
