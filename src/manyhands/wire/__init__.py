"""The network: invites, admission, and one guarded stream of bytes a peer, over gRPC and mutual TLS 1.3.

Read `invite`, `admission` and `gate` for who may come in; `listener` and `dialer` for the two ends. This room
knows messages as bytes only, and imports no torch.
"""

from manyhands.wire import environment as environment  # first: gRPC reads it when it is imported
from manyhands.wire.admission import InviteRow, Peer, Role
from manyhands.wire.backoff import delays
from manyhands.wire.dialer import ClientStream, Connection, dial
from manyhands.wire.gate import Gate
from manyhands.wire.invite import Invite
from manyhands.wire.known import KnownFile, find_invite, known_invite, known_ports, read_invite
from manyhands.wire.limits import PROTOCOL, Limits
from manyhands.wire.link import Link
from manyhands.wire.listener import Listener
from manyhands.wire.nodekey import NodeKey

__all__ = [
    "PROTOCOL",
    "ClientStream",
    "Connection",
    "Gate",
    "Invite",
    "InviteRow",
    "KnownFile",
    "Limits",
    "Link",
    "Listener",
    "NodeKey",
    "Peer",
    "Role",
    "delays",
    "dial",
    "find_invite",
    "known_invite",
    "known_ports",
    "read_invite",
]
