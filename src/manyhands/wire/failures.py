"""gRPC's status codes and our errors: the one place where each becomes the other.

The listener sends an error of ours as a code and its sentence; the dialer turns them back into the same
class. Codes that only gRPC itself sends are read as what they mean for a node: try again, or give up.
This module knows no stream and no certificate.
"""

from __future__ import annotations

from typing import cast

import grpc

from manyhands.errors import (
    ManyhandsError,
    Mismatch,
    ProtocolError,
    Refused,
    RunFailed,
    Unreachable,
    UsageError,
)
from manyhands.wire.invite import mask

_Code = grpc.StatusCode

MEANING: dict[grpc.StatusCode, type[ManyhandsError]] = {
    _Code.CANCELLED: Unreachable,  # the other side went away in the middle of a call
    _Code.UNKNOWN: RunFailed,  # the other side's own code raised; its log says what
    _Code.INVALID_ARGUMENT: UsageError,
    _Code.DEADLINE_EXCEEDED: Unreachable,
    _Code.NOT_FOUND: UsageError,
    _Code.ALREADY_EXISTS: UsageError,
    _Code.PERMISSION_DENIED: Refused,
    _Code.RESOURCE_EXHAUSTED: Unreachable,  # too many calls at once; sizes are checked before sending
    _Code.FAILED_PRECONDITION: Mismatch,
    _Code.ABORTED: RunFailed,
    _Code.OUT_OF_RANGE: ProtocolError,
    _Code.UNIMPLEMENTED: Mismatch,
    _Code.INTERNAL: Unreachable,  # a broken connection, as some proxies break it
    _Code.UNAVAILABLE: Unreachable,
    _Code.DATA_LOSS: ProtocolError,
    _Code.UNAUTHENTICATED: Refused,
    # gRPC never sends OK as an error; a peer that does talks nonsense.
    _Code.OK: ProtocolError,
}

_CODE: list[tuple[type[ManyhandsError], grpc.StatusCode]] = [
    (Mismatch, _Code.FAILED_PRECONDITION),  # before Refused, whose child it is
    (Refused, _Code.PERMISSION_DENIED),
    (UsageError, _Code.INVALID_ARGUMENT),
    (ProtocolError, _Code.DATA_LOSS),
    (Unreachable, _Code.UNAVAILABLE),
    (ManyhandsError, _Code.ABORTED),
]

_MOST_CHARACTERS = 500
_OWN_WORDS = (Refused, UsageError, ProtocolError, RunFailed)


def to_status(error: ManyhandsError) -> tuple[grpc.StatusCode, str]:
    """The code and the sentence under which `error` travels: short, one line, no invite in it."""
    code = next(code for kind, code in _CODE if isinstance(error, kind))
    return code, _one_line(str(error))


def from_rpc(error: grpc.RpcError, where: str) -> ManyhandsError:
    """Our error for a failed call to `where` (`"host:port"`)."""
    # Each error that a call raises is the call itself; the stubs don't say so.
    call = cast(grpc.Call, error)
    return from_status(call.code(), call.details() or "", where)


def from_status(code: grpc.StatusCode, details: str, where: str) -> ManyhandsError:
    """Our error for a status; the other side's own sentence is kept as it is."""
    kind, details = MEANING[code], _one_line(details)
    if code is _Code.UNIMPLEMENTED:
        return Mismatch(f"{where} does not speak manyhands, or another release of it: {details}")
    if issubclass(kind, _OWN_WORDS) and details:
        return kind(details)
    reason = details or code.name.lower().replace("_", " ")
    return kind(f"no answer from {where}: {reason}; is the coordinator running, and is the address right?")


def _one_line(text: str) -> str:
    """What a peer says may end up on a terminal: printable, short, and never an invite."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * _MOST_CHARACTERS])
    return mask(" ".join(line.split()))[:_MOST_CHARACTERS]
