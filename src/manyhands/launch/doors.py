"""The two ways into a meeting: node 0 listens, the others connect (steps 1 and 2 of `meeting`).

A port that was asked for is used or refused, naming who has it; one that was not is chosen without a gap in which
another could take it: the socket that found it is the one that listens.
"""

from __future__ import annotations

import errno
import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

from manyhands.clock import Clock
from manyhands.errors import Mismatch, Unreachable, UsageError
from manyhands.launch.addresses import answers
from manyhands.launch.meeting import Meeting, Place
from manyhands.launch.plan import USUAL_PORT
from manyhands.observe.waiting import Waiting

_STORE_TIMEOUT = timedelta(seconds=300)
_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 5.0


def listen(address: str, port: int | None, place: Place, clock: Clock) -> Meeting:
    """Step 1, on node 0. `address` is what others connect to; loopback where there are no others.

    UsageError where the port that was asked for is taken, naming who has it.
    """
    is_alone = place.num_nodes == 1
    listener = _bind(address if is_alone else None, port, () if is_alone else (USUAL_PORT,))
    found = listener.getsockname()[1]
    if (reason := _misleads(listener, address)) is not None:
        listener.close()
        raise UsageError(
            f"--master-addr {address} does not lead to this machine, which is node 0 ({reason}): give one of its "
            "own addresses, the one that the other machines reach"
        )
    store = TCPStore(
        address,
        found,
        is_master=True,
        timeout=_STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return Meeting(store, address, place, clock)


def connect(
    address: str, port: int, place: Place, clock: Clock, limit_seconds: float | None = None
) -> Meeting:
    """Step 2, on the others. `Unreachable` after the limit, `Mismatch` where something else answers."""
    waiting = Waiting(clock)
    waiting.say(f"connecting to node 0 at {address} port {port}")
    while (reason := answers(address, port, _CONNECT_SECONDS)) is not None:
        if limit_seconds is not None and waiting.seconds > limit_seconds:
            raise Unreachable(
                f"node 0 at {address} port {port} did not answer within {limit_seconds:g} s ({reason}): is it "
                "started, is that its address, and does a firewall let the port through?"
            )
        waiting.say(f"node 0 at {address} port {port} does not answer yet ({reason})")
        clock.sleep(_RETRY_SECONDS)
    try:
        store = TCPStore(
            address,
            port,
            is_master=False,
            timeout=timedelta(seconds=2 * _CONNECT_SECONDS),
            wait_for_workers=False,
        )
    except DistError as error:
        raise Mismatch(f"what listens at {address} port {port} is not node 0 of a launch") from error
    store.set_timeout(_STORE_TIMEOUT)
    return Meeting(store, address, place, clock)


def _bind(address: str | None, port: int | None, usual: tuple[int, ...]) -> socket.socket:
    """A listening socket on `port`, else on the first usual one that is free, else on any."""
    for wanted in (port,) if port is not None else (*usual, 0):
        try:
            return _listener(address, wanted)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UsageError(
                    f"cannot listen on {address or 'any address'} port {wanted}: {error.strerror}"
                ) from None
    from manyhands.wire.ports import port_holder

    holder = port_holder(port or 0)
    raise UsageError(
        f"--master-port {port} is in use{f' by {holder}' if holder else ''}: "
        "give another, or leave it out and a free one is chosen"
    )


def _misleads(listener: socket.socket, address: str) -> str | None:
    """None where whoever connects to `address` arrives at `listener`, else why not."""
    found = listener.getsockname()[1]
    if (reason := answers(address, found, _CONNECT_SECONDS)) is not None:
        return reason
    listener.settimeout(_CONNECT_SECONDS)
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return "something else answers there"
    finally:
        listener.settimeout(None)
    return None


def _listener(address: str | None, port: int) -> socket.socket:
    """Bound to one address, or to all of them in both families."""
    if address is None and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in (address or "") else socket.AF_INET
    return socket.create_server((address or "0.0.0.0", port), family=family)  # noqa: S104 - other machines connect
