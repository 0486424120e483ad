"""One question at a time to some workers, until all have answered, one of them fails, or one is lost.

::

    ask(number, parcels) ──► to each member ──► heard: Answer, Value ──► all answered: an Outcome
                                               heard: Failed        ──► what the worker raised, raised here
                                               disturb(sentence)    ──► Disturbed

What was said in an older generation, of another question or by a member that was not asked counts for nothing.
Lives in the crew's event loop; knows no placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from manyhands import errors
from manyhands.errors import ManyhandsError, RunFailed, Unreachable
from manyhands.observe.text import clean_line
from manyhands.pipeline import messages as m
from manyhands.pipeline.commands import Parcel
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.members import Member
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.post import Name

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


class Disturbed(Exception):
    """A worker or a stream between workers was lost; the sentence says which."""


class _Question:
    """What is being asked, who has not answered yet, and what came back so far."""

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


class Exchange:
    """Asks the workers of `crew` for one boss's model."""

    def __init__(self, crew: Crew) -> None:
        self.generation = 0
        """The placement that is in force; workers name it in all that they say."""
        self._crew = crew
        self._question: _Question | None = None

    def number(self) -> int:
        """One for a new command or a new generation: never used twice, whichever boss of this crew asks."""
        return next(self._crew.numbers)

    async def ask(self, number: int, parcels: Mapping[int, Sequence[Parcel]]) -> Outcome:
        """Send each member its parcels and wait for all answers.

        Raises Disturbed where a worker or a stream is lost meanwhile, else what a worker raised.
        """
        question = self._question = _Question(number, list(parcels))
        try:
            for member, several in parcels.items():
                one = self._crew.members[member]
                if not one.is_alive:
                    raise Disturbed(f"{one.title} was lost")
                for message, tree in several:
                    _send(one, message, tree)
            await question.done
            return question.outcome
        finally:
            self._question = None

    def abort(self) -> None:
        """Have every worker give up what it does of this generation."""
        for member in self._crew.alive:
            try:
                member.channel.send(m.Abort(self.generation))
            except Unreachable:
                continue  # its loss is told by its stream

    # ---- what comes back ----

    def heard(self, member: Member, message: m.Answer | m.Failed, tree: Any) -> None:
        """An answer; it counts if `member` owes one."""
        question = self._question
        if question is None or message.generation != self.generation or member.number not in question.missing:
            return
        if isinstance(message, m.Failed):
            # What a worker says of its stages before they are whole has no number of its own.
            question.fail(_error_of(member, message))
        elif message.command == question.number:
            question.answered(member.number, message.numbers, tree)

    def keep(self, value: m.Value, tree: Any) -> None:
        """A value for the boss: it belongs to the answer."""
        if self._question is not None:
            name = Name(value.kind, value.edge, value.micro_batch, value.stage)
            self._question.outcome.values[name] = tree

    def disturb(self, sentence: str) -> None:
        """Somebody is lost: give the question up."""
        if self._question is not None:
            self._question.fail(Disturbed(sentence))


def _send(member: Member, message: m.FromBoss, tree: Any) -> None:
    try:
        member.channel.send(message, tree)
    except Unreachable:
        raise Disturbed(f"{member.title} was lost") from None


def _error_of(member: Member, failed: m.Failed) -> ManyhandsError:
    """A worker's error as the boss raises it: of the same class, if it is one of ours that a sentence makes."""
    kind = getattr(errors, failed.error, RunFailed) if failed.error in _TRAVELLING else RunFailed
    error: ManyhandsError = kind(f"{member.title}: {clean_line(failed.sentence, max=2000)}")
    return error
