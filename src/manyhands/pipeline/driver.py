"""The boss's side of a running pipeline: ask, wait for all, and after a loss place anew and ask again.

::

    do(command) ──► parcels to the owners of the stages ──► all answered: kept in the log, done
                        │ a worker or a stream is lost
                        ▼
        next generation: owners replaced ─► restored from the snapshot ─► the log asked again ─► the command again

Lives in the crew's event loop. What a command is stands in `commands`, where stages lie in `placement`, how one
question is asked in `exchange`; this file knows neither models nor arithmetic. Commands run one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from manyhands.errors import ManyhandsError, ProtocolError, RunFailed
from manyhands.observe.text import clean_line
from manyhands.pipeline import messages as m
from manyhands.pipeline.commands import Command, Parcel
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.exchange import Disturbed, Exchange
from manyhands.pipeline.linking import link
from manyhands.pipeline.members import Member
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placement import Placement, replaced

REPLACEMENT_SECONDS: Final = 5.0
"""How long a boss without any worker waits for one before it gives up."""

Prepare = Callable[[Placement, int, int], dict[int, list[Parcel]]]
"""(placement, generation, command number) to what builds the stages and puts them into the newest snapshot."""


class Driver:
    """Drives the workers of `crew`. `prepare` makes the parcels of a new placement."""

    def __init__(
        self, crew: Crew, placement: Placement, prepare: Prepare, say: Callable[[str], None]
    ) -> None:
        self.placement = placement
        self.log: list[Command] = []
        """What was done since the snapshot, and is done again after a loss."""
        self._crew = crew
        self._exchange = Exchange(crew)
        self._prepare = prepare
        self._say = say
        self._is_placed = False
        self._trouble = ""

    # ---- commands ----

    def _attend(self) -> None:
        """Hear the workers; where another model of this crew has been on them since, this one is placed again."""
        if not self._crew.attend(self):
            self._is_placed = False

    def next_number(self) -> int:
        """A number for a new command."""
        return self._exchange.number()

    @property
    def generation(self) -> int:
        """The placement that is in force, counted over all of the crew."""
        return self._exchange.generation

    async def survey(
        self, ask: Callable[[int, int], m.Measure], recipes: Any, members: Sequence[int]
    ) -> Outcome | None:
        """Have workers measure a model before it is placed; None where one was lost meanwhile."""
        async with self._crew.turn:
            self._attend()
            self._abort()
            number = self._next_generation()
            question = ask(self.generation, number)
            try:
                return await self._exchange.ask(number, {member: [(question, recipes)] for member in members})
            except Disturbed:
                return None

    async def place(self, placement: Placement | None = None) -> None:
        """Give the stages to their workers, where `placement` says if given. Raises what a worker says of them."""
        async with self._crew.turn:
            self._attend()
            self.placement = placement or self.placement
            await self._settle()

    async def do(self, command: Command) -> Outcome:
        """Have a command done by everybody that has a part in it.

        A loss on the way is made good, and costs time only. Raises RunFailed where it cannot be; what a worker
        raised otherwise, and then the state is that before the command.
        """
        async with self._crew.turn:
            self._attend()
            while True:
                try:
                    if not self._is_placed:
                        await self._settle()
                    outcome = await self._exchange.ask(
                        command.number, command.parcels_for(self.placement, self.generation)
                    )
                except Disturbed as loss:
                    self._trouble, self._is_placed = str(loss), False
                    continue
                except (ManyhandsError, asyncio.CancelledError):
                    # Given up in the middle, by a worker or by who waited: the next command starts from what holds.
                    self._abort()
                    raise
                if command.changes_state:
                    self.log.append(command)
                return outcome

    async def _settle(self) -> None:
        """Place, restore and catch up, again until it holds."""
        while True:
            try:
                await self._place()
                for command in list(self.log):
                    await self._exchange.ask(
                        command.number, command.parcels_for(self.placement, self.generation)
                    )
            except Disturbed as loss:
                self._trouble = str(loss)
                continue
            self._is_placed = True
            if self._trouble:
                workers = len(self.placement.members)
                self._say(f"{self._trouble}; went on with {workers} workers, {len(self.log)} commands again")
                self._trouble = ""
            return

    async def _place(self) -> None:
        self._abort()
        alive = [member.number for member in self._crew.alive]
        if not alive:
            await self._wait_for_one()
            alive = [member.number for member in self._crew.alive]
        owners = replaced(self.placement.owners, alive)
        if self._trouble:
            self._say(
                f"{self._trouble}; going on with {len(set(owners))} workers, {len(self.log)} commands again"
            )
            self._trouble = ""
        self.placement = replace(self.placement, owners=owners)
        number = self._next_generation()
        await self._exchange.ask(number, self._prepare(self.placement, self.generation, number))
        await link(self.placement.pairs(), self._crew, self._exchange)

    def _next_generation(self) -> int:
        """Let a new placement begin; the number of its first command."""
        self._exchange.generation = self.next_number()
        return self.next_number()

    async def _wait_for_one(self) -> None:
        try:
            await asyncio.to_thread(self._crew.wait, 1, REPLACEMENT_SECONDS)
        except ManyhandsError:
            raise RunFailed(
                f"{self._trouble or 'every worker is gone'}, and no other one is here: start workers and resume from "
                "the last checkpoint (`await boss.resume(path)`)"
            ) from None

    def _abort(self) -> None:
        self._is_placed = False
        self._exchange.abort()

    # ---- what the workers say (crew.Hears) ----

    def joined(self, member: Member) -> None:
        """A spare: it waits until it is needed."""

    def heard(self, member: Member, message: m.FromWorker, tree: Any) -> None:
        """Take an answer, or pass a value on."""
        if isinstance(message, m.Value):
            self._pass_on(member, message, tree)
        elif isinstance(message, m.Unlinked):
            if not 0 <= message.member < len(self._crew.members):
                raise ProtocolError(f"a worker lost its stream to worker {message.member}, and there is none")
            if message.generation == self.generation and member.number in self.placement.owners:
                other = self._crew.members[message.member].title
                self._crew.linked.discard(frozenset((member.number, message.member)))
                self._disturb(
                    f"the stream between {member.title} and {other} broke ({clean_line(message.reason)})"
                )
        elif isinstance(message, m.Answer | m.Failed):
            self._exchange.heard(member, message, tree)

    def lost(self, member: Member, reason: str) -> None:
        """Place anew, if it held anything."""
        if member.number in self.placement.owners:
            self._disturb(f"{member.title} was lost ({clean_line(reason)})")

    def _disturb(self, sentence: str) -> None:
        self._trouble, self._is_placed = sentence, False
        self._exchange.disturb(sentence)

    def _pass_on(self, member: Member, value: m.Value, tree: Any) -> None:
        if value.generation != self.generation:
            return
        if member.number not in self.placement.owners:
            raise ProtocolError("a worker that holds no stage sent a value")
        if value.kind == "state" and value.stage != member.number:
            raise ProtocolError(f"worker {member.number} sent a state as worker {value.stage}'s")
        if value.member == m.BOSS:
            self._exchange.keep(value, tree)
        elif value.member < len(self._crew.members) and self._crew.members[value.member].is_alive:
            self._crew.members[value.member].channel.send(value, tree)
