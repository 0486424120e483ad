"""A node that fails on purpose: a ``TrainingNode`` whose stream passes every message by a script.

Faults act where the protocol is, in the node's own process, so that a SIGKILL is a real one at a known moment.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from manyhands.errors import ManyhandsError
from manyhands.fleet import messages as m
from manyhands.fleet.dialling import Dialler, Streams
from manyhands.fleet.uplink import Stream
from manyhands.pool.node import TrainingNode
from manyhands.settings import state_dir
from manyhands.testing.channel import Channel
from manyhands.testing.faults import Fault, Point, Script, to_plain
from manyhands.wire.dialer import Connection
from manyhands.wire.envelope import Envelope, pack, unpack
from manyhands.wire.known import known_invite

_LEAST_CHUNK_BYTES = 4096
_CRC_AT = 12


class _LocalDialler(Dialler):
    """Reads the invite that the local coordinator left, whenever it dials."""

    def dial(self) -> Connection:
        if self.secure:
            known = known_invite(state_dir(), self.address[1])  # type: ignore[arg-type]
            self.invite = str(known) if known is not None else self.invite
        return super().dial()


class ClusterNode(TrainingNode):
    """A node of a cluster, with a script of what goes wrong in it."""

    _script: Script
    _channel: Channel
    _stream: FaultyStream | None = None

    def prepare(self, faults: tuple[Fault, ...], channel: Channel) -> None:
        """Give it its script, before ``train``."""
        self._script, self._channel = Script(faults), channel
        own = self._dialler
        assert isinstance(own, Dialler)
        self._dialler = _LocalDialler(own.address, own.invite, secure=own.secure)
        if any(fault.at == "computing" for fault in faults):
            assert self.model is not None
            self.model.register_forward_hook(self._computing)

    def _open_stream(self, connection: Streams) -> Stream:
        assert isinstance(connection, Connection)
        self._stream = FaultyStream(connection, self._script, self._channel)
        return self._stream

    def _computing(self, *_: Any) -> None:
        if self._stream is not None and self._stream.step is not None:
            self._stream.pass_by("computing", self._stream.step)


class FaultyStream:
    """A client's stream with a script between it and the node."""

    def __init__(self, connection: Connection, script: Script, channel: Channel) -> None:
        self._connection = connection
        self._stream = connection.stream()
        self._script = script
        self._channel = channel
        self._sending: _Sending | None = None
        self._arriving: dict[int, tuple[Point, int | None, int]] = {}
        self._steps: dict[int, int] = {}
        self.step: int | None = None

    # ---- the node's side ----

    def send(self, message: bytes) -> None:
        """Queue one message, unless the script has it otherwise."""
        envelope = unpack(message)
        for said in m.decode_from_node(envelope.control) if envelope.control else ():
            match said:
                case m.Delivered(step=step, num_bytes=num_bytes):
                    self._sending = _Sending(step, num_bytes, self._script.take("sent", step))
                case m.Hello():
                    return self._send_one("hello", None, message)
                case m.Probed():
                    return self._send_one("probed", None, message)
                case m.Computed(lease=lease):
                    return self._send_one("computed", self._steps.get(lease), message)
        if self._sending is not None:
            return self._send_part(self._sending, envelope, message)
        return self._stream.send(message)

    def receive(self) -> bytes | None:
        """The next message, as the script lets it through; None at the end."""
        while (message := self._stream.receive()) is not None:
            passed = self._let_through(message)
            if passed is not None:
                return passed
        return None

    def finish(self) -> None:
        """Send what waits, then no more."""
        self._stream.finish()

    def close(self) -> None:
        """End the stream at once."""
        self._stream.close()

    # ---- sending ----

    def _send_one(self, at: Point, step: int | None, message: bytes) -> None:
        fault = self.pass_by(at, step)
        for data in _altered(fault, [message]):
            self._stream.send(data)

    def _send_part(self, sending: _Sending, envelope: Envelope, message: bytes) -> None:
        """A chunk of a partial sum; a single one is cut, so that there is a half to have sent."""
        before, sending.sent_bytes = sending.sent_bytes, sending.sent_bytes + len(envelope.payload)
        is_half = before * 2 < sending.num_bytes <= sending.sent_bytes * 2
        half = self._script.take("half_sent", sending.step) if is_half else None
        parts = _cut(envelope) if half is not None and before == 0 else [message]
        changed = sending.fault is not None and sending.fault.action in (
            "drop",
            "duplicate",
            "corrupt",
            "wrong",
        )
        if changed:
            sending.parts += parts
        else:
            self._stream.send(parts[0])
        if half is not None:
            self._flush()
            self._act(half, sending.step)
        for part in () if changed else parts[1:]:
            self._stream.send(part)
        if sending.sent_bytes >= sending.num_bytes:
            self._sending = None
            self._sent(sending)

    def _sent(self, sending: _Sending) -> None:
        if sending.fault is None:
            return
        if sending.parts:
            self._act(sending.fault, sending.step)
        for data in _altered(sending.fault, sending.parts):
            self._stream.send(data)
        self._flush()
        if not sending.parts:
            self._act(sending.fault, sending.step)

    def _flush(self) -> None:
        """Return when the coordinator has most likely read what was sent: it answered a question since."""
        for _ in range(3):
            try:
                self._connection.hello(5.0)
            except ManyhandsError:
                return

    # ---- receiving ----

    def _let_through(self, message: bytes) -> bytes | None:
        envelope = unpack(message)
        said = m.decode_from_coordinator(envelope.control) if envelope.control else []
        passed: list[Any] = []
        for one in said:
            if isinstance(one, m.State):
                self._arriving[one.transfer] = ("state_half", one.version, one.num_bytes)
            elif isinstance(one, m.Everything):
                self._arriving[one.transfer] = ("everything", None, one.num_bytes)
            passed += self._granted(one) if isinstance(one, m.Granted) else [one]
        is_damaged = self._body_arrives(envelope)
        if passed != said:
            if not passed and not envelope.transfer:
                return None
            message = pack(
                m.encode(*passed) if passed else b"",
                transfer=envelope.transfer,
                offset=envelope.offset,
                payload=envelope.payload,
            )
        return _corrupted(message) if is_damaged else message

    def _granted(self, granted: m.Granted) -> list[m.Granted]:
        self._steps[granted.lease] = granted.step
        for old in list(self._steps)[:-64]:
            del self._steps[old]
        fault = self.pass_by("granted", granted.step)
        self.step = granted.step
        if fault is None or fault.action not in ("drop", "duplicate"):
            return [granted]
        return [] if fault.action == "drop" else [granted, granted]

    def _body_arrives(self, envelope: Envelope) -> bool:
        """Note a chunk of the weights; whether the script wants it damaged."""
        if envelope.transfer not in self._arriving:
            return False
        at, step, num_bytes = self._arriving[envelope.transfer]
        if (envelope.offset + len(envelope.payload)) * 2 < num_bytes:
            return False
        del self._arriving[envelope.transfer]
        fault = self.pass_by(at, step)
        return fault is not None and fault.action == "corrupt"

    # ---- what happens ----

    def pass_by(self, at: Point, step: int | None) -> Fault | None:
        """Do what the script has for this moment; the fault, where it is the message's turn."""
        fault = self._script.take(at, step)
        if fault is not None:
            self._act(fault, step)
        return fault

    def _act(self, fault: Fault, step: int | None) -> None:
        self._channel.say("fired", fault=to_plain((fault,))[0], step=step)
        match fault.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise RuntimeError(f"raised on purpose at {fault.at!r}, step {step}")
            case "hang":
                threading.Event().wait()
            case "disconnect":
                self._connection.close()


class _Sending:
    """A partial sum on its way out."""

    def __init__(self, step: int, num_bytes: int, fault: Fault | None) -> None:
        self.step = step
        self.num_bytes = num_bytes
        self.fault = fault
        self.sent_bytes = 0
        self.parts: list[bytes] = []


def _altered(fault: Fault | None, parts: list[bytes]) -> list[bytes]:
    """What is sent instead of `parts`."""
    match fault.action if fault is not None and parts else None:
        case "drop":
            return []
        case "duplicate":
            return parts + parts
        case "corrupt":
            return [_corrupted(parts[0]), *parts[1:]]
        case "wrong":
            return [_wrong(parts[0]), *parts[1:]]
    return parts


def _corrupted(message: bytes) -> bytes:
    """The same message with one bit of its checksum changed."""
    return message[:_CRC_AT] + bytes([message[_CRC_AT] ^ 1]) + message[_CRC_AT + 1 :]


def _wrong(message: bytes) -> bytes:
    """The same message with the first number's sign changed, and a checksum that agrees."""
    envelope = unpack(message)
    payload = bytearray(envelope.payload)
    payload[3] ^= 0x80
    return pack(
        bytes(envelope.control), transfer=envelope.transfer, offset=envelope.offset, payload=bytes(payload)
    )


def _cut(envelope: Envelope) -> list[bytes]:
    """One envelope as two: up to the middle of its payload, and the rest."""
    middle = max(len(envelope.payload) // 2, _LEAST_CHUNK_BYTES)
    control, transfer, offset = bytes(envelope.control), envelope.transfer, envelope.offset
    if middle >= len(envelope.payload):
        return [pack(control), pack(transfer=transfer, offset=offset, payload=envelope.payload)]
    return [
        pack(control, transfer=transfer, offset=offset, payload=envelope.payload[:middle]),
        pack(transfer=transfer, offset=offset + middle, payload=envelope.payload[middle:]),
    ]
