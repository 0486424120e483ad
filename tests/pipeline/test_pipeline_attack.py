"""Peers with a good invite and bad manners: at a boss that trains, and at a worker's own door."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from boss_models import OneProcess, batch, equals, residual
from torch import nn

from manyhands import BossMan, ManyhandsError, ProtocolError, Refused, UsageError
from manyhands.clock import SystemClock
from manyhands.fleet.channels import Lost
from manyhands.fleet.parcels import pack
from manyhands.pipeline import messages as m
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.neighbours import Neighbours
from manyhands.testing.process import wait_for
from manyhands.wire import ClientStream, Connection, Invite, NodeKey, dial

SECONDS = 30
LOSS = nn.MSELoss()
PAST_ANY = 1 << 19


def say(stream: ClientStream, message: Any, tree: Any = None) -> None:
    for data in pack(message, tree):
        stream.send(data)


def the_end_of(stream: ClientStream) -> None:
    """Read until the other side ends the stream; raises what it says."""
    while stream.receive() is not None:
        continue


# ---- at the boss -------------------------------------------------------------------------------------


@pytest.fixture
def stranger(crew) -> Iterator[tuple[Connection, ClientStream]]:
    """A peer with a worker's invite, which has said hello."""
    before = len(crew)
    with dial(Invite.parse(crew.invite), timeout_seconds=SECONDS) as connection:
        stream = connection.stream()
        say(stream, m.Hello(m.PROTOCOL, "0", "stranger", 1, "cpu", 1 << 30, crew.invite, []))
        crew.wait(before + 1, SECONDS)
        yield connection, stream
    wait_for(lambda: len(crew) == before, SECONDS, "the stranger's end")


WORDS = {
    "bytes": lambda generation: os.urandom(200),
    "another hello": lambda generation: m.Hello(m.PROTOCOL, "0", "b", 1, "cpu", 1, "mh://x@y:1", []),
    "a boss's word": lambda generation: m.Farewell(),
    "a stream to nobody": lambda generation: m.Unlinked(generation, PAST_ANY, "broke"),
    "a stream to the boss": lambda generation: m.Unlinked(generation, m.BOSS, "broke"),
    "a prediction": lambda generation: m.Value(generation, m.BOSS, "value", "layer_9", 0, m.BOSS),
    "another's state": lambda generation: m.Value(generation, m.BOSS, "state", "", 0, 0),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_peer_that_talks_nonsense_is_cut_off_and_the_run_goes_on(crew, stranger, word):
    async def main():
        boss = BossMan(crew, residual())
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        one = OneProcess(await boss.state_dict())
        generation = boss._deployment.driver.generation
        said = WORDS[word](generation)
        if isinstance(said, bytes):
            stranger[1].send(said)
        else:
            say(stranger[1], said, torch.ones(8, 1) if isinstance(said, m.Value) else None)
        with pytest.raises((ProtocolError, Refused)):
            await asyncio.to_thread(the_end_of, stranger[1])
        await trains_as(boss, one)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["answers", "failures", "broken streams"])
def test_what_a_peer_without_a_stage_says_of_the_work_counts_for_nothing(crew, stranger, kind):
    """It knows the generation and floods the boss with every command's number while others compute."""

    async def main():
        boss = BossMan(crew, residual())
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        one = OneProcess(await boss.state_dict())
        driver = boss._deployment.driver
        generation, next_number = driver.generation, driver.next_number()
        for number in range(next_number, next_number + 20):
            word = {
                "answers": m.Answer(generation, number, {"loss": 0.0}),
                "failures": m.Failed(generation, number, "RunFailed", "no"),
                "broken streams": m.Unlinked(generation, 0, "broke"),
            }[kind]
            say(stranger[1], word)
        await trains_as(boss, one)
        assert driver.generation == generation

    asyncio.run(main())


async def trains_as(boss: BossMan, one: OneProcess) -> None:
    """Two steps with the bits of one process."""
    own = torch.optim.SGD(one.parameters(), lr=0.1)
    for step in range(2):
        x, y = batch(step)
        own.zero_grad()
        loss = LOSS(one(x), y)
        loss.backward()
        own.step()
        assert await boss.train_batch(x, y, LOSS, micro_batches=1) == loss.item()
    assert equals(await boss.state_dict(), one)


def test_a_second_boss_on_the_port_is_told_so(crew):
    port = crew.address[1]
    with pytest.raises(UsageError, match=str(port)):
        Crew(1, "127.0.0.1", port).open()


# ---- at a worker's own door --------------------------------------------------------------------------


class Door:
    """A worker's listener, and what came through it."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.key = NodeKey.temporary()
        self.neighbours = Neighbours(lambda *item: self.arrived.put(item), SystemClock(), self.key)

    @property
    def invite(self) -> Invite:
        invite = Invite.parse(self.neighbours.invite)
        return invite.with_address("127.0.0.1", invite.port)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    made.neighbours.start()
    yield made
    made.neighbours.close()


def test_nobody_may_speak_under_another_workers_number(door):
    """Whoever holds the line may dial; which number it has, the boss says by its key."""
    honest, liar = NodeKey.temporary(), NodeKey.temporary()
    door.neighbours.expect(1, honest.key_id)
    door.neighbours.expect(2, liar.key_id)
    for member in (1, 3, m.BOSS):
        with dial(door.invite, key=liar, timeout_seconds=SECONDS) as connection:
            stream = connection.stream()
            say(stream, m.Introduced(member))
            with pytest.raises(Refused, match=f"worker {member} comes with this key"):
                the_end_of(stream)
        assert door.neighbours.get(member) is None
    assert door.arrived.empty()
    with dial(door.invite, key=honest, timeout_seconds=SECONDS) as connection:
        stream = connection.stream()
        say(stream, m.Introduced(1))
        say(stream, m.Value(1, 0, "gradient", "a", 0, 0), torch.ones(1))
        assert door.arrived.get(timeout=SECONDS)[0] == 1


@pytest.mark.parametrize(
    "word",
    [
        os.urandom(200),
        m.Introduced(1),
        m.Introduced(2),
        m.Hello(1, "0", "a", 1, "cpu", 1, "", []),
        m.Farewell(),
    ],
    ids=["bytes", "again", "as another", "hello", "farewell"],
)
def test_a_neighbour_that_talks_nonsense_is_cut_off(door, word):
    key = NodeKey.temporary()
    door.neighbours.expect(1, key.key_id)
    with dial(door.invite, key=key, timeout_seconds=SECONDS) as connection:
        stream = connection.stream()
        say(stream, m.Introduced(1))
        if isinstance(word, bytes):
            stream.send(word)
        else:
            say(stream, word)
        with pytest.raises(ProtocolError):
            the_end_of(stream)
    member, end, _ = door.arrived.get(timeout=SECONDS)
    assert member == 1
    assert isinstance(end, Lost)
    assert isinstance(end.error, ManyhandsError)


def test_a_neighbour_that_does_not_say_who_it_is_is_not_heard(door):
    with dial(door.invite, timeout_seconds=SECONDS) as connection:
        stream = connection.stream()
        say(stream, m.Value(1, 0, "value", "a", 0, 0), torch.ones(1))
        with pytest.raises(ProtocolError, match="before it said who it is"):
            the_end_of(stream)
    assert door.arrived.empty()
