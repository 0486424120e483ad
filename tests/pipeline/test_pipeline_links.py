"""Direct streams between workers, and what a worker's post makes of what arrives."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from manyhands import ProtocolError, Refused, Unreachable
from manyhands.clock import SystemClock
from manyhands.fleet.channels import Lost
from manyhands.pipeline import messages as m
from manyhands.pipeline.neighbours import Neighbours
from manyhands.pipeline.post import Aborted, BossLost, Name, Post
from manyhands.testing.process import wait_for
from manyhands.wire import Invite, NodeKey, dial

SECONDS = 30


class Worker:
    """A worker's streams, without a boss."""

    def __init__(self, member: int) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.said: list[Any] = []
        self.key = NodeKey.temporary()
        self.neighbours = Neighbours(lambda *item: self.inbox.put(item), SystemClock(), self.key)
        self.post = Post(self, self.neighbours, self.inbox)  # type: ignore[arg-type]
        self.post.member = member
        self.post.begin(1)

    def send(self, message: Any, tree: Any = None) -> None:
        """What goes to the boss."""
        self.said.append((message, tree))

    @property
    def lines(self) -> list[str]:
        invite = Invite.parse(self.neighbours.invite)
        return [str(invite.with_address("127.0.0.1", invite.port))]


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made = [Worker(0), Worker(1)]
    for one in made:
        one.neighbours.start()
        for other in made:
            one.neighbours.expect(other.post.member, other.key.key_id)
    yield made
    for one in made:
        one.neighbours.close()


def test_values_go_both_ways_over_the_stream_that_one_side_opened(workers):
    first, second = workers
    second.neighbours.connect(1, 0, first.lines)
    large, mask = torch.randn(1500, 1000), torch.tensor([True, False])
    there, back = Name("value", "a", 0, 1), Name("gradient", "a", 0, 0)
    second.post.send(0, back, large)
    assert torch.equal(first.post.value(back), large)
    first.post.send(1, there, mask)
    assert torch.equal(second.post.value(there), mask)
    second.post.send(0, back, None)
    assert first.post.value(back) is None
    assert not first.said
    assert not second.said


def test_a_pair_without_a_stream_goes_through_the_boss(workers):
    first, _ = workers
    first.post.send(1, Name("value", "a", 2, 1), torch.ones(2))
    ((message, tree),) = first.said
    assert message == m.Value(1, 1, "value", "a", 2, 1)
    assert torch.equal(tree, torch.ones(2))


def test_the_line_of_another_worker_opens_nothing(workers):
    """Its secret is not this worker's, and neither is the key that it names."""
    first, second = workers
    foreign = Invite.parse(second.neighbours.invite).with_address(
        "127.0.0.1", Invite.parse(first.lines[0]).port
    )
    with pytest.raises(Refused, match="not the one that made the invite"):
        dial(foreign, timeout_seconds=5)
    with pytest.raises(Unreachable, match=r"worker 0 could be reached: .*not the one that made the invite"):
        second.neighbours.connect(1, 0, [str(foreign)])


def test_the_end_of_a_stream_is_told_to_the_boss(workers):
    first, second = workers
    second.neighbours.connect(1, 0, first.lines)
    second.post.send(0, Name("value", "a", 0, 0), torch.ones(1))
    first.post.value(Name("value", "a", 0, 0))
    second.neighbours.close()
    wait_for(lambda: first.neighbours.get(1) is None, SECONDS, "the end of the stream")
    wait_for(lambda: not first.inbox.empty(), SECONDS, "the news of it")
    first.inbox.put((m.BOSS, m.Farewell(), None))
    assert first.post.command()[0] == m.Farewell()
    assert first.said[0][0].member == 1
    assert first.said[0][0].generation == 1


def test_values_are_kept_for_the_placement_that_they_belong_to():
    worker = Worker(0)
    name = Name("value", "a", 0, 0)
    for generation in (0, 1, 2):
        worker.inbox.put((1, m.Value(generation, 0, *name), torch.tensor(float(generation))))
    worker.inbox.put((m.BOSS, m.Abort(1), None))
    assert worker.post.value(name) == 1.0
    with pytest.raises(Aborted):
        worker.post.value(name)
    worker.post.begin(2)
    assert worker.post.value(name) == 2.0


def test_commands_wait_their_turn_while_a_value_is_waited_for():
    worker = Worker(0)
    name = Name("value", "a", 0, 0)
    orders = [m.Order(1, number, "clear") for number in (1, 2)]
    worker.inbox.put((m.BOSS, orders[0], None))
    worker.inbox.put((1, m.Value(1, 0, *name), torch.ones(1)))
    worker.inbox.put((m.BOSS, orders[1], None))
    assert worker.post.value(name) == 1.0
    assert [worker.post.command()[0] for _ in orders] == orders


@pytest.mark.parametrize("error", [Unreachable("gone"), Refused("gone"), ProtocolError("gone")])
def test_the_end_of_the_boss_ends_every_wait_whatever_ended_it(error):
    worker = Worker(0)
    for wait in (worker.post.command, lambda: worker.post.value(Name("value", "a", 0, 0))):
        worker.inbox.put((m.BOSS, Lost(error), None))
        with pytest.raises(BossLost, match="gone") as raised:
            wait()
        assert raised.value.error is error
