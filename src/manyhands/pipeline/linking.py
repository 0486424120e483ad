"""Direct streams: each pair of workers that has something to say, introduced by the boss.

::

    boss ── Expect (who, with which key) ──► listener      first, so that nobody comes unannounced
    boss ── Connect (at which addresses) ──► dialler ──► listener

A pair that fails both ways talks through the boss. Remembered in the crew, whichever boss of it asks next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from manyhands.errors import Unreachable
from manyhands.pipeline import messages as m
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.exchange import Exchange
from manyhands.pipeline.members import Member

logger = logging.getLogger(__name__)


async def link(pairs: Iterable[tuple[int, int]], crew: Crew, exchange: Exchange) -> None:
    """Have each of these pairs of members open a stream, if it has none. Raises Disturbed where one is lost."""
    for one, other in pairs:
        if frozenset((one, other)) in crew.linked:
            continue
        for dialler, listener in ((other, one), (one, other)):
            if (dialler, listener) in crew.unreachable:
                continue
            try:
                await _introduce(crew.members[dialler], crew.members[listener], exchange)
            except Unreachable as error:
                logger.info("worker %d cannot reach worker %d: %s", dialler, listener, error)
                crew.unreachable.add((dialler, listener))
                continue
            crew.linked.add(frozenset((one, other)))
            break


async def _introduce(dialler: Member, listener: Member, exchange: Exchange) -> None:
    """Tell the listener who will come, and only then send it."""
    number = exchange.number()
    expect = m.Expect(number, dialler.number, dialler.key_id)
    await exchange.ask(number, {listener.number: [(expect, None)]})
    number = exchange.number()
    connect = m.Connect(number, listener.number, listener.dials)
    await exchange.ask(number, {dialler.number: [(connect, None)]})
