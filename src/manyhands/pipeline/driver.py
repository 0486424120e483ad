"""The boss's side of a running pipeline: ask, wait for all, and after a loss place anew and ask again.

::

    do(command) ──► parcels to the owners of the stages ──► all answered: kept in the log, done
                        │ a worker or a stream is lost
                        ▼
        next generation: owners replaced ─► restored from the snapshot ─► the log asked again ─► the command again

Lives in the crew's event loop. What a command is stands in `commands`, where stages lie in `placement`; this
file knows neither models nor arithmetic. Commands run one at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from manyhands import errors
from manyhands.errors import ManyhandsError, ProtocolError, RunFailed
from manyhands.observe.text import clean_line
from manyhands.pipeline import messages as m
from manyhands.pipeline.commands import Command, Parcel
from manyhands.pipeline.crew import Crew, Member
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placement import Placement, replaced
from manyhands.pipeline.post import Name

logger = logging.getLogger(__name__)
REPLACEMENT_SECONDS: Final = 5.0
"""How long a boss without any worker waits for one before it gives up."""


class _Disturbed(Exception):
    """A worker or a stream between workers was lost; the sentence says which."""


class _Pending:
    """One command that is being done."""

    def __init__(self, number: int, members: Sequence[int]) -> None:
        self.number = number
        self.missing = set(members)
        self.outcome = Outcome()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, member: int, numbers: Mapping[str, float], tree: Any) -> None:
        self.outcome.numbers[member] = dict(numbers)
        self.outcome.trees[member] = tree
        self.missing.discard(member)
        if not self.missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


Prepare = Callable[[Placement, int, int], dict[int, list[Parcel]]]
"""(placement, generation, command number) to what builds the stages and puts them into the newest snapshot."""


class Driver:
    """Drives the workers of `crew`. `prepare` makes the parcels of a new placement."""

    def __init__(
        self, crew: Crew, placement: Placement, prepare: Prepare, say: Callable[[str], None]
    ) -> None:
        self.placement = placement
        self.generation = 0
        self.log: list[Command] = []
        self._crew = crew
        self._prepare = prepare
        self._say = say
        self._pending: _Pending | None = None
        self._is_placed = False
        self._trouble = ""

    # ---- commands ----

    def _attend(self) -> None:
        """Hear the workers; where another model of this crew has been on them since, this one is placed again."""
        if not self._crew.attend(self):
            self._is_placed = False

    def next_number(self) -> int:
        """A number for a new command."""
        return next(self._crew.numbers)

    async def survey(
        self, ask: Callable[[int, int], m.Measure], recipes: Any, members: Sequence[int]
    ) -> Outcome | None:
        """Have workers measure a model before it is placed; None where one was lost meanwhile."""
        async with self._crew.turn:
            self._attend()
            self._abort()
            self.generation, number = self.next_number(), self.next_number()
            question = ask(self.generation, number)
            try:
                return await self._ask(number, {member: [(question, recipes)] for member in members})
            except _Disturbed:
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
                    outcome = await self._ask(
                        command.number, command.parcels_for(self.placement, self.generation)
                    )
                except _Disturbed as loss:
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
                    await self._ask(command.number, command.parcels_for(self.placement, self.generation))
            except _Disturbed as loss:
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
        self.generation = self.next_number()
        number = self.next_number()
        await self._ask(number, self._prepare(self.placement, self.generation, number))
        await self._connect()

    async def _wait_for_one(self) -> None:
        try:
            await asyncio.to_thread(self._crew.wait, 1, REPLACEMENT_SECONDS)
        except ManyhandsError:
            raise RunFailed(
                f"{self._trouble or 'every worker is gone'}, and no other one is here: start workers and resume from "
                "the last checkpoint (`await boss.resume(path)`)"
            ) from None

    async def _connect(self) -> None:
        """Have each pair that has something to say open a direct stream; one that cannot goes through the boss."""
        for one, other in self.placement.pairs():
            if frozenset((one, other)) in self._crew.linked:
                continue
            for dialler, listener in ((other, one), (one, other)):
                if (dialler, listener) in self._crew.unreachable:
                    continue
                try:
                    await self._introduce(self._crew.members[dialler], self._crew.members[listener])
                except errors.Unreachable as error:
                    logger.info("worker %d cannot reach worker %d: %s", dialler, listener, error)
                    self._crew.unreachable.add((dialler, listener))
                    continue
                self._crew.linked.add(frozenset((one, other)))
                break

    async def _introduce(self, dialler: Member, listener: Member) -> None:
        """Tell the listener who will come, and only then send it."""
        number = self.next_number()
        expect = m.Expect(number, dialler.number, dialler.key_id)
        await self._ask(number, {listener.number: [(expect, None)]})
        number = self.next_number()
        connect = m.Connect(number, listener.number, listener.dials)
        await self._ask(number, {dialler.number: [(connect, None)]})

    async def _ask(self, number: int, parcels: Mapping[int, Sequence[Parcel]]) -> Outcome:
        pending = self._pending = _Pending(number, list(parcels))
        try:
            for member, several in parcels.items():
                one = self._crew.members[member]
                if not one.is_alive:
                    raise _Disturbed(f"{one.title} was lost")
                for message, tree in several:
                    self._send(one, message, tree)
            await pending.done
            return pending.outcome
        finally:
            self._pending = None

    def _send(self, member: Member, message: m.FromBoss, tree: Any) -> None:
        try:
            member.channel.send(message, tree)
        except errors.Unreachable:
            raise _Disturbed(f"{member.title} was lost") from None

    def _abort(self) -> None:
        self._is_placed = False
        for member in self._crew.alive:
            try:
                member.channel.send(m.Abort(self.generation))
            except errors.Unreachable:
                continue  # its loss is told by its stream

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
        elif isinstance(message, m.Answer | m.Failed) and self._is_current(member, message):
            assert self._pending is not None
            if isinstance(message, m.Answer):
                self._pending.answered(member.number, message.numbers, tree)
            else:
                self._pending.fail(_error_of(member, message))

    def lost(self, member: Member, reason: str) -> None:
        """Place anew, if it held anything."""
        if member.number in self.placement.owners:
            self._disturb(f"{member.title} was lost ({clean_line(reason)})")

    def _disturb(self, sentence: str) -> None:
        self._trouble, self._is_placed = sentence, False
        if self._pending is not None:
            self._pending.fail(_Disturbed(sentence))

    def _is_current(self, member: Member, message: m.Answer | m.Failed) -> bool:
        pending = self._pending
        if pending is None or message.generation != self.generation or member.number not in pending.missing:
            return False
        # What a worker says of its stages before they are whole has no number of its own.
        return message.command == pending.number or isinstance(message, m.Failed)

    def _pass_on(self, member: Member, value: m.Value, tree: Any) -> None:
        if value.generation != self.generation:
            return
        if member.number not in self.placement.owners:
            raise ProtocolError("a worker that holds no stage sent a value")
        if value.kind == "state" and value.stage != member.number:
            raise ProtocolError(f"worker {member.number} sent a state as worker {value.stage}'s")
        if value.member == m.BOSS:
            if self._pending is not None:
                name = Name(value.kind, value.edge, value.micro_batch, value.stage)
                self._pending.outcome.values[name] = tree
        elif value.member < len(self._crew.members) and self._crew.members[value.member].is_alive:
            self._crew.members[value.member].channel.send(value, tree)


def _error_of(member: Member, failed: m.Failed) -> ManyhandsError:
    """A worker's error as the boss raises it: of the same class, if it is one of ours that a sentence makes."""
    kind = getattr(errors, failed.error, RunFailed) if failed.error in _TRAVELLING else RunFailed
    error: ManyhandsError = kind(f"{member.title}: {clean_line(failed.sentence, max=2000)}")
    return error


_TRAVELLING = (
    "Unreachable",
    "UsageError",
    "Refused",
    "Mismatch",
    "ProgramRefused",
    "ProtocolError",
    "RunFailed",
    "NonFinite",
)
