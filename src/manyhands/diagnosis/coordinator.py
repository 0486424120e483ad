"""The way to a coordinator, one thing after the other, until one fails: name, route, TCP, pin, entry, run, link.

::

    resolve ─▶ connect (proxy) ─▶ pin ─▶ hello: version, invite ─▶ standing, clock, needs ─▶ link
       3           3               4         4                        warnings only
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from manyhands.clock import Clock
from manyhands.diagnosis.finding import Figures, Finding, failed, ok, warn
from manyhands.diagnosis.link import judge_link, measure
from manyhands.diagnosis.network import reach_of
from manyhands.errors import ManyhandsError, Refused, Unreachable, UsageError
from manyhands.fleet.messages import AskStanding, encode_question
from manyhands.fleet.visitors import Needs, Standing
from manyhands.observe.rates import format_bytes, format_count, format_duration
from manyhands.observe.text import clean_name
from manyhands.release import __version__
from manyhands.wire import Connection, Invite, NodeKey, dial
from manyhands.wire.address import resolve
from manyhands.wire.proxy import Route, route_to
from manyhands.wire.tls import fetch_certificate

CLOCK_SECONDS = 60.0
"""From here on two clocks are said to differ."""


@dataclass(frozen=True)
class Here:
    """What this machine has, as far as a run may ask for it."""

    usable_bytes: int
    cores: int


def visit(
    invite: Invite, key: NodeKey, here: Here, timeout_seconds: float, clock: Clock
) -> Iterator[Finding]:
    """Findings, the first bad one last. Takes one use of the invite, unless `key` came in with it before."""
    topic = "name"
    try:
        route = route_to(invite.host, invite.port)
        addresses = [] if route.proxy else _resolve(invite.host)
        yield ok(topic, f"{invite.host} is {', '.join(addresses) or 'for the proxy to find'}")
        topic = "connection"
        yield _connect(invite, addresses, route, timeout_seconds, clock)
        topic = "pin"
        fetch_certificate(route.connect, invite, timeout_seconds)
        yield ok(topic, "the coordinator's key is the one in the invite, TLS 1.3")
        topic = "entry"
        with dial(invite, key=key, timeout_seconds=timeout_seconds) as connection:
            yield ok(topic, f"let in with key {key.key_id[:8]}; both sides speak one protocol")
            topic = "run"
            yield from _ask(connection, here, clock)
    except ManyhandsError as error:
        yield failed(topic, error)


def _resolve(host: str) -> list[str]:
    try:
        return resolve(host)
    except UsageError as error:
        raise Unreachable(f"{error}: is the name right, and does this machine resolve names?") from None


def _connect(
    invite: Invite, addresses: list[str], route: Route, timeout_seconds: float, clock: Clock
) -> Finding:
    start = clock.monotonic()
    try:
        route.connect(timeout_seconds).close()
    except Unreachable:  # a proxy, with its own reason
        raise
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise Unreachable(
            f"cannot reach {invite.host}:{invite.port} ({reason}): {advice(addresses)}"
        ) from None
    seconds = clock.monotonic() - start
    through = ", through the HTTP proxy" if route.proxy else ""
    return ok(
        "connection",
        f"TCP to {invite.host}:{invite.port} in {seconds * 1e3:.1f} ms{through}",
        seconds=seconds,
        proxied=route.proxy is not None,
    )


def advice(addresses: list[str]) -> str:
    """What to look at where an address does not answer."""
    reaches = {reach_of(address) for address in addresses}
    if reaches == {"loopback"}:
        return "this address means this machine itself, and nothing listens here: is the coordinator running?"
    general = "is the coordinator running, and does its firewall let that port in?"
    if reaches & {"private", "shared", "link"}:
        return (
            f"{general} The address is private: from another network give the coordinator advertise= with an address "
            "that can be reached (a forwarded port, or ssh -R)"
        )
    return general


def _ask(connection: Connection, here: Here, clock: Clock) -> Iterator[Finding]:
    start = clock.time()
    standing = _standing(connection.ask(encode_question(AskStanding())))
    offset_seconds = standing.time - (start + clock.time()) / 2
    yield judge_standing(standing)
    yield judge_clock(offset_seconds)
    yield judge_needs(standing.needs, here)
    try:
        yield judge_link(measure(connection.ask, clock), standing.needs.model_bytes)
    except (Refused, Unreachable) as error:
        yield warn("link", f"not measured: {error}", "look again later")


def _standing(answer: bytes) -> Standing:
    try:
        return msgspec.json.decode(answer, type=Standing)
    except msgspec.MsgspecError as error:
        raise Refused(
            f"the coordinator's answer is none that this release reads ({error}): upgrade the older"
        ) from None


def judge_standing(standing: Standing) -> Finding:
    """The run, and how long its door stays open for this invite."""
    run = (
        f"{clean_name(standing.run)} is {clean_name(standing.state)}, you come as {clean_name(standing.role)}"
    )
    figures: Figures = {
        "run": clean_name(standing.run),
        "role": clean_name(standing.role),
        "expires": standing.expires,
        "uses_left": standing.uses_left,
        "release": clean_name(standing.release),
    }
    if standing.expires is not None:
        left = standing.expires - standing.time
        until = f"expires in {format_duration(left)}" if left > 0 else f"expired {format_duration(-left)} ago"
        run += f"; the invite {until} and has {standing.uses_left} uses left (this machine is in, and may come back)"
    if standing.release != __version__:
        note = f"the coordinator is manyhands {figures['release']} and this {__version__}: give both the same"
        return warn("run", run, note, **figures)
    return ok("run", run, **figures)


def judge_clock(offset_seconds: float) -> Finding:
    """Clocks matter for reading logs only; an invite's end is judged by the coordinator's."""
    side = "ahead of" if offset_seconds >= 0 else "behind"
    found = f"the coordinator's clock is {abs(offset_seconds):.1f} s {side} this machine's"
    if abs(offset_seconds) < CLOCK_SECONDS:
        return ok("clock", found, offset_seconds=offset_seconds)
    return warn(
        "clock",
        found,
        "training does not mind, and only the coordinator's clock ends an invite; but times in the two logs differ",
        offset_seconds=offset_seconds,
    )


def judge_needs(needs: Needs, here: Here) -> Finding:
    """What a node of this run needs; weights, gradients and a partial sum are certain, activations are not."""
    least = 3 * needs.model_bytes + needs.leaf_bytes
    found = (
        f"a model of {format_count(needs.parameters)} parameters, {format_bytes(needs.model_bytes)}; a node needs "
        f"{format_bytes(least)} for weights, gradients, a sum and {needs.leaf_samples} samples, beside torch and "
        f"activations, and computes on {needs.threads} {'thread' if needs.threads == 1 else 'threads'}"
    )
    figures: Figures = {
        "parameters": needs.parameters,
        "model_bytes": needs.model_bytes,
        "node_bytes": least,
        "threads": needs.threads,
        "data": clean_name(needs.data),
    }
    if least > here.usable_bytes:
        do = f"this machine has {format_bytes(here.usable_bytes)}: lend one with more memory"
        return warn("needs", found, do, **figures)
    if needs.threads > here.cores:
        refused = (
            "this run is strict, and refuses it"
            if needs.numerics == "strict"
            else "the report will name both"
        )
        do = f"this machine has {here.cores} processors, so it is of another numeric class: {refused}"
        return warn("needs", found, do, **figures)
    if needs.data == "local":
        return warn(
            "needs", found, "nodes read the dataset themselves: TrainingNode(model, dataset=...)", **figures
        )
    return ok("needs", found, **figures)
