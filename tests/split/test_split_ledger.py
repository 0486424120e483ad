"""The ledger over 10^5 random events: every batch once, whatever loaders do; and a planted bug is found."""

from __future__ import annotations

import random

import pytest

from manyhands.errors import ProtocolError
from manyhands.split.jobs import Work
from manyhands.split.ledger import Lease, Ledger


def works(count: int) -> list[Work]:
    return [Work("train", 0, number, (2 * number, 2 * number + 1)) for number in range(count)]


class Simulation:
    """Loaders that come, make, die, are late or answer twice, over a ledger; a trainer that consumes."""

    def __init__(self, ledger: Ledger, seed: int, count: int) -> None:
        self.ledger = ledger
        self.random = random.Random(seed)
        self.todo = works(count)
        self.making: dict[int, list[int]] = {}
        self.consumed: list[Work] = []
        self.next_loader = 0
        self.events = 0
        ledger.seek(iter(self.todo))

    def run(self, max_events: int) -> None:
        while self.ledger.work_at_head() is not None and self.events < max_events:
            self.events += 1
            chosen = self.random.random()
            if not self.making or (chosen < 0.01 and len(self.making) < 6):
                self.join()
            elif chosen < 0.015:
                self.die()
            elif chosen < 0.45:
                self.make()
            elif chosen < 0.6:
                self.give(self.ledger.hedge())
            else:
                self.consume()
            self.give(self.ledger.grant())
            self.check()

    def join(self) -> None:
        self.making[self.next_loader] = []
        self.ledger.join(self.next_loader, self.random.randint(1, 5))
        self.next_loader += 1

    def die(self) -> None:
        loader = self.random.choice(list(self.making))
        del self.making[loader]
        self.ledger.leave(loader)

    def give(self, leases: list[Lease]) -> None:
        for lease in leases:
            assert lease.work == self.todo[lease.serial]
            assert lease.serial not in self.making[lease.loader]
            self.making[lease.loader].append(lease.serial)

    def make(self) -> None:
        loader = self.random.choice(list(self.making))
        if self.making[loader]:
            serial = self.making[loader].pop(self.random.randrange(len(self.making[loader])))
            self.ledger.arrived(loader, serial)

    def consume(self) -> None:
        if self.ledger.has_arrived(self.ledger.head):
            work = self.ledger.work_at_head()
            assert work is not None
            self.ledger.consumed()
            self.consumed.append(work)

    def check(self) -> None:
        """Whatever is open at a loader is owed by it; nothing runs further ahead than it may."""
        owed = sum(len(serials) for serials in self.making.values())
        assert self.ledger.num_open <= owed
        assert all(serial < self.ledger.head + 64 for serials in self.making.values() for serial in serials)


@pytest.mark.parametrize("seed", range(3))
def test_every_batch_is_consumed_once_and_in_order(seed):
    ledger = Ledger(max_ahead=64)
    simulation = Simulation(ledger, seed, 16_000)
    simulation.run(200_000)
    assert simulation.consumed == simulation.todo
    assert simulation.events > 33_000
    assert ledger.counts.consumed == ledger.counts.arrived == 16_000
    assert ledger.counts.reissued > 50, "no loader died with leases: the simulation tests nothing"
    assert ledger.counts.duplicates > 10, "no batch came twice: the simulation tests nothing"


class Forgetful(Ledger):
    """The bug to be found: what a dead loader was leased is not leased again."""

    def leave(self, loader: int) -> list[Work]:
        lost = super().leave(loader)
        self._waiting.clear()
        return lost


class Credulous(Ledger):
    """The bug to be found: a second answer is taken for a new batch."""

    def arrived(self, loader: int, serial: int) -> bool:
        is_new = super().arrived(loader, serial)
        if not is_new and self.head > 0:
            self._head -= 1
            self._entries.setdefault(self._head, next(iter(self._entries.values())))
        return is_new


@pytest.mark.parametrize("kind", [Forgetful, Credulous])
def test_the_simulation_finds_a_planted_bug(kind):
    simulation = Simulation(kind(max_ahead=64), 0, 2000)
    try:
        simulation.run(20_000)
    except (AssertionError, KeyError, ProtocolError, IndexError):
        return
    assert simulation.consumed != simulation.todo


def test_a_loader_that_dies_leaves_its_work_to_the_others_at_once():
    ledger = Ledger()
    ledger.seek(iter(works(4)))
    ledger.join(1, 2)
    ledger.join(2, 2)
    first = ledger.grant()
    assert sorted(lease.serial for lease in first) == [0, 1, 2, 3]
    lost = ledger.leave(1)
    assert len(lost) == 2
    assert ledger.grant() == [], "the other one has no room yet"
    for lease in first:
        if lease.loader == 2:
            assert ledger.arrived(2, lease.serial)
    again = ledger.grant()
    assert [lease.work for lease in again] == sorted(lost, key=lambda work: work.sequence)
    assert ledger.counts.reissued == 2


def test_a_late_loaders_work_is_leased_twice_and_used_once():
    ledger = Ledger()
    ledger.seek(iter(works(2)))
    ledger.join(1, 2)
    ledger.grant()
    ledger.join(2, 1)
    assert [(lease.loader, lease.serial) for lease in ledger.hedge()] == [(2, 0), (2, 1)]
    assert ledger.hedge() == []
    assert ledger.arrived(2, 0)
    assert not ledger.arrived(1, 0)
    assert ledger.counts.duplicates == 1
    ledger.consumed()
    assert ledger.arrived(1, 1)
    ledger.consumed()
    assert not ledger.arrived(2, 1)
    assert ledger.work_at_head() is None


def test_what_was_not_leased_is_not_taken():
    ledger = Ledger()
    ledger.seek(iter(works(2)))
    ledger.join(1, 1)
    ledger.grant()
    with pytest.raises(ProtocolError, match="batch 7, which was not leased to it"):
        ledger.arrived(1, 7)
    ledger.join(2, 1)
    ledger.grant()
    with pytest.raises(ProtocolError, match="batch 0, which was not leased to it"):
        ledger.arrived(2, 0)


def test_a_new_position_voids_what_was_leased():
    ledger = Ledger()
    ledger.seek(iter(works(10)))
    ledger.join(1, 3)
    old = ledger.grant()
    below = ledger.seek(iter(works(10)[5:]))
    assert below == 3
    assert not ledger.arrived(1, old[0].serial)
    assert [lease.work.sequence for lease in ledger.grant()] == [5, 6, 7]
