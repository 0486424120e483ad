"""Answers that are stale, another's, said twice or not what they say: refused by their numbers, and no bit changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pool_jobs
import pytest
import torch
from hand_node import HandNode
from pool_nodes import Pool, wait_for_nodes
from torch import nn

from manyhands.errors import Mismatch, ProtocolError, UsageError
from manyhands.fleet import messages as m
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.store.ledger import Ledger
from manyhands.training.reference import reference
from manyhands.wire.envelope import pack

JOB = "linear"


def model() -> nn.Module:
    return pool_jobs.build(JOB)[0]


@pytest.fixture
def server(tmp_path: Path) -> CentralServer:
    """Waits for its first lease to be answered."""
    pool_jobs.GATE.set()
    built, dataset, options = pool_jobs.build(JOB)
    made = CentralServer(built, dataset, ip="localhost", port=0, checkpoint_dir=tmp_path, **options)
    made.start(block=False)
    return made


@pytest.fixture
def ends_well(server: CentralServer, pool: Pool, tmp_path: Path) -> Iterator[None]:
    """An honest node finishes the run, which is the run that nobody disturbed."""
    yield
    (worker,) = pool.take(1)
    worker.tell(job=JOB, port=server.address[1])
    report = server.wait()
    assert "error" not in worker.hear()
    built, dataset, options = pool_jobs.build(JOB)
    assert report.weights_sha256 == reference(built, dataset, **options).weights_sha256
    assert report.samples_applied == report.samples_expected == 96
    with Ledger(tmp_path / "run-0001" / "journal.sqlite") as ledger:
        assert ledger.audit() == []


@pytest.fixture
def hand(server: CentralServer, ends_well: None) -> Iterator[HandNode]:
    with HandNode(server, model()) as node:
        yield node


# ---- a sound message at the wrong time, or of the wrong node ----


def test_an_answer_of_another_incarnation(server: CentralServer, hand: HandNode) -> None:
    granted = hand.lease()
    for ready in hand.compute(granted):
        hand.deliver(granted, ready, incarnation=granted.incarnation + 1)
    told = hand.hear(m.Told).text
    assert told.startswith(f"this lease is of incarnation {granted.incarnation + 1} of the coordinator")
    assert server.status()["step"] == 0


def test_an_answer_of_another_step(server: CentralServer, hand: HandNode) -> None:
    granted = hand.lease()
    (ready,) = hand.compute(granted)
    hand.deliver(granted, ready, step=5)
    assert hand.hear(m.Told).text == f"lease {granted.lease} is of step 0, and the answer says step 5"
    assert server.status()["step"] == 0


def test_an_answer_that_comes_a_step_late(server: CentralServer, hand: HandNode) -> None:
    old = hand.lease()
    (ready,) = hand.compute(old)
    hand.deliver(old, ready)
    new = hand.lease()
    assert new.step == 1
    hand.deliver(old, ready)
    told = hand.hear(m.Told).text
    assert told == f"lease {old.lease} is late: step 1 is open, its leases start at {new.lease}"
    assert server.status()["ledger"]["applied"] == 16


def test_an_answer_for_another_nodes_lease(server: CentralServer, hand: HandNode) -> None:
    granted = hand.lease()
    (ready,) = hand.compute(granted)
    with HandNode(server, model(), "thief") as thief:
        thief.deliver(granted, ready)
        told = thief.hear(m.Told).text
    assert told == f"lease {granted.lease} belongs to another node; a node answers its own leases only"
    assert server.status()["ledger"]["applied"] == 0


def test_an_answer_for_leaves_that_were_not_granted(server: CentralServer, hand: HandNode) -> None:
    granted = hand.lease()
    (whole,) = hand.compute(granted)
    with HandNode(server, model(), "second") as second:
        wait_for_nodes(server, 2)
        hand.deliver(granted, whole)
        half, other = hand.lease(), second.lease()
        assert {half.subtrees, other.subtrees} == {(2,), (3,)}, "two nodes share a step"
        (ready,) = hand.compute(half)
        for subtree, says in [
            (other.subtrees[0], f"has leaves that lease {half.lease} was not granted"),
            (1, f"has leaves that lease {half.lease} was not granted"),
            (99, "step 1 has no subtree 99: its numbers end at 7"),
        ]:
            hand.deliver(half, ready, subtree=subtree)
            assert says in hand.hear(m.Told).text
    assert server.status()["ledger"]["applied"] == 16


def test_a_replayed_answer_counts_once(server: CentralServer, hand: HandNode) -> None:
    granted = hand.lease()
    assert granted.subtrees == (1,)
    (left,) = hand.compute(granted, 2)
    for _ in range(3):
        hand.deliver(granted, left)
    (right,) = hand.compute(granted, 3)
    hand.deliver(granted, right)
    assert hand.lease().step == 1
    assert server.status()["ledger"]["applied"] == 16


# ---- a body that is not what was announced ----


def never_sent(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.uplink.send(announced)
    hand.stream.finish()


def cut_short(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.send(announced, announced.transfer, 0, body[:96])
    hand.stream.finish()


def with_a_hole(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.send(announced, announced.transfer, 64, body[64:])


def longer_than_said(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.send(announced, announced.transfer, 0, body + bytes(64))


def of_no_transfer(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.send(None, announced.transfer, 0, body)


def announced_twice(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.uplink.send(announced, announced)


def shorter_than_a_sum(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    small = msgspec.structs.replace(announced, num_bytes=64)
    hand.send(small, small.transfer, 0, body[:64])


def larger_than_any_sum(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    hand.uplink.send(msgspec.structs.replace(announced, num_bytes=1 << 40))


def for_more_parameters(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    many = msgspec.structs.replace(announced, present=b"\xff")
    hand.send(many, many.transfer, 0, body)


def with_a_flipped_bit(hand: HandNode, announced: m.Delivered, body: bytes) -> None:
    message = bytearray(pack(m.encode(announced), transfer=announced.transfer, offset=0, payload=body))
    message[30] ^= 1
    hand.stream.send(bytes(message))


LIES: list[tuple[Callable[[HandNode, m.Delivered, bytes], None], str | None]] = [
    (never_sent, None),
    (cut_short, r"sent a chunk of 96 bytes; 4096 is the least"),
    (with_a_hole, r"has 0 bytes, and its next chunk is at 64"),
    (longer_than_said, r"announced 192 bytes, and a chunk ends at 256"),
    (of_no_transfer, r"a chunk came for transfer \d+, which is not open"),
    (announced_twice, r"was announced, and that id is in use"),
    (shorter_than_a_sum, r"a partial sum of 64 bytes where this run's have 192"),
    (larger_than_any_sum, r"announces 1099511627776 bytes beside 0 open ones; at most 768 are allowed"),
    (for_more_parameters, r"claims more than the model's 2 parameters"),
    (with_a_flipped_bit, r"crc32 is 0x[0-9a-f]+ where its header says 0x[0-9a-f]+"),
]


@pytest.mark.parametrize(("lie", "says"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_a_body_that_is_not_what_was_said_ends_its_stream(
    server: CentralServer,
    hand: HandNode,
    lie: Callable[[HandNode, m.Delivered, bytes], None],
    says: str | None,
) -> None:
    granted = hand.lease()
    (ready,) = hand.compute(granted)
    body = bytes(ready.partial.buffer.body.numpy())
    assert len(body) == 192
    lie(hand, hand.message(granted, ready), body)
    error = hand.end()
    if says is not None:
        assert isinstance(error, ProtocolError)
        assert re.search(says, str(error)), error
    assert server.status()["ledger"]["applied"] == 0


# ---- a model that is not the run's ----


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 3)


def frozen() -> nn.Module:
    other = nn.Linear(8, 3)
    other.bias.requires_grad_(False)
    return other


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: nn.Linear(8, 4), r"weight is float32 \(3, 8\) here and float32 \(4, 8\) there"),
        (lambda: nn.Linear(8, 3).double(), r"weight is float32 \(3, 8\) here and float64 \(3, 8\) there"),
        (Renamed, "tensor 0 is 'weight' here and 'lin.weight' there"),
        (lambda: nn.Linear(8, 3, bias=False), "there are 2 tensors here and 1 there; bias is only here"),
        (frozen, "bias has another requires_grad on the node than on the coordinator"),
    ],
    ids=["shape", "dtype", "name", "missing", "frozen"],
)
def test_the_first_difference_of_a_model_is_named(
    server: CentralServer, ends_well: None, other: Callable[[], nn.Module], says: str
) -> None:
    with pytest.raises(Mismatch, match=says) as caught, HandNode(server, other()):
        pass
    assert caught.value.exit_code == 4
    assert server.status()["nodes"] == []


# ---- gradients of a loop of one's own ----


@pytest.mark.parametrize(
    ("gradient", "says"),
    [
        (torch.zeros(8, 3), r"the gradient of weight is \(8, 3\), the parameter \(3, 8\)"),
        (torch.zeros(3, 8, dtype=torch.int64), r"the gradient of weight is int64, the parameter float32"),
        (
            torch.zeros(3, 8, dtype=torch.complex64),
            r"the gradient of weight is complex64, the parameter float32",
        ),
        (torch.zeros(3, 8, dtype=torch.float64), r"the gradient of weight is float64, the parameter float32"),
    ],
    ids=["shape", "int64", "complex64", "float64"],
)
def test_a_gradient_that_does_not_fit_is_refused_and_can_be_sent_again(
    server: CentralServer, ends_well: None, gradient: torch.Tensor, says: str
) -> None:
    node = TrainingNode(model(), server.address).connect()
    batch = node.get_batch()
    for gradients in ([gradient, None], {"weight": gradient}):
        with pytest.raises(UsageError, match=says):
            node.send_gradients(gradients, batch["batch_id"])
    node.close()
    assert server.status()["ledger"]["applied"] == 0
