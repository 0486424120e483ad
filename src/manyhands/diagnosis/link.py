"""How fast the way to a coordinator is, measured with short questions that it echoes.

A question carries 60 KiB at most, so a window of them is kept in flight; each direction ends after 8 MiB or 3 s. A
slow link is found by the first one, and is spared the others. What comes out is a lower bound: a run's stream has
one call for everything, and may be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from manyhands.clock import Clock
from manyhands.diagnosis.finding import Figures, Finding, ok, warn
from manyhands.fleet.messages import ECHO_BYTES, AskEcho, encode_question
from manyhands.observe.rates import format_bytes, format_duration

IN_FLIGHT = 16
MOST_BYTES = 8 << 20
MOST_SECONDS = 3.0
SLOW_SECONDS = 0.5
"""A first piece that takes longer has told enough."""
LONG_STEP_SECONDS = 10.0
_ROUNDS = 5

Ask = Callable[[bytes], bytes]
"""One question, one answer; may be called from several threads at once."""


@dataclass(frozen=True)
class LinkSpeed:
    """Seconds of one round trip, bytes a second each way (at least), and how many bytes were moved to see it."""

    round_trip_seconds: float
    up: float
    down: float
    moved_bytes: int


def measure(ask: Ask, clock: Clock) -> LinkSpeed:
    """Measure both ways, one after the other. Raises what `ask` raises."""
    empty = encode_question(AskEcho(b"", 0))
    round_trip = min(_seconds(ask, empty, clock) for _ in range(_ROUNDS))
    up, up_bytes = _rate(ask, encode_question(AskEcho(bytes(ECHO_BYTES), 0)), clock, round_trip)
    down, down_bytes = _rate(ask, encode_question(AskEcho(b"", ECHO_BYTES)), clock, round_trip)
    return LinkSpeed(round_trip, up, down, up_bytes + down_bytes)


def _rate(ask: Ask, question: bytes, clock: Clock, round_trip_seconds: float) -> tuple[float, int]:
    """Bytes a second that such questions move, and the bytes moved."""
    first = _seconds(ask, question, clock)
    if first > SLOW_SECONDS:
        return ECHO_BYTES / max(first - round_trip_seconds, 1e-3), ECHO_BYTES
    tickets = iter(range(MOST_BYTES // ECHO_BYTES))
    start = clock.monotonic()

    def work() -> int:
        done = 0
        while clock.monotonic() - start < MOST_SECONDS and next(tickets, None) is not None:
            ask(question)
            done += ECHO_BYTES
        return done

    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="manyhands-echo") as pool:
        moved = sum(future.result() for future in [pool.submit(work) for _ in range(IN_FLIGHT)])
    return moved / max(clock.monotonic() - start, 1e-9), moved + ECHO_BYTES


def _seconds(ask: Ask, question: bytes, clock: Clock) -> float:
    start = clock.monotonic()
    ask(question)
    return clock.monotonic() - start


def judge_link(speed: LinkSpeed, model_bytes: int | None) -> Finding:
    """What it means for a run whose step moves a model's gradients up and its weights down."""
    found = (
        f"{speed.round_trip_seconds * 1e3:.1f} ms there and back; at least {format_bytes(speed.up)}/s up and "
        f"{format_bytes(speed.down)}/s down ({format_bytes(speed.moved_bytes)} moved, {IN_FLIGHT} questions at once)"
    )
    figures: Figures = {
        "round_trip_seconds": speed.round_trip_seconds,
        "up_bytes_per_s": speed.up,
        "down_bytes_per_s": speed.down,
        "moved_bytes": speed.moved_bytes,
    }
    if model_bytes is None:
        return ok("link", found, **figures)
    seconds = model_bytes / speed.up + model_bytes / speed.down
    meaning = f"a step moves {format_bytes(model_bytes)} each way: {format_duration(seconds)} at most"
    if seconds > LONG_STEP_SECONDS:
        return warn(
            "link",
            found,
            f"{meaning}. A larger batch_size= makes fewer, longer steps",
            step_seconds=seconds,
            **figures,
        )
    return ok("link", f"{found}; {meaning}", step_seconds=seconds, **figures)
