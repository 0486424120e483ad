"""Who has no good invite gets nothing of a run and hears why, once; who is put out is out within a second."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parties import NodeThread, ask
from security_jobs import build, model

from manyhands.errors import Refused, Unreachable
from manyhands.fleet import messages as m
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.wire import NodeKey, dial
from manyhands.wire.certificates import invite_id, invite_key
from manyhands.wire.invite import Invite


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CentralServer]:
    """A run that would go on for ever."""
    made = build(checkpoint_dir=tmp_path / "checkpoints", epochs=1_000_000)
    made.start(block=False)
    yield made
    made.stop()
    made.wait()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Move to another machine: a state folder in which no coordinator has left its invite."""

    def move() -> Path:
        folder = tmp_path / "elsewhere"
        monkeypatch.setenv("MANYHANDS_STATE_DIR", str(folder))
        return folder

    return move


def made(server: CentralServer, uses: int = 1, hours: float = 1.0) -> Invite:
    return Invite.parse(ask(server, m.AskInvite(uses, hours, "node"))["invite"])


def wrong(server: CentralServer) -> Invite:
    return replace(made(server), secret=bytes(range(16)))


def expired(server: CentralServer) -> Invite:
    return made(server, hours=1e-9)


def revoked(server: CentralServer) -> Invite:
    invite = made(server)
    ask(server, m.AskRevoke(invite_id(invite_key(invite.secret).public_key())))
    return invite


def used_up(server: CentralServer) -> Invite:
    invite = made(server, uses=1)
    dial(invite, key=NodeKey.temporary()).close()
    return invite


def of_another_run(server: CentralServer) -> Invite:
    other = build(checkpoint_dir=server.checkpoint_dir)
    other.start(block=False)
    invite = Invite.parse(other.invite).with_address(*server.address)
    other.stop()
    other.wait()
    return invite


BAD = [
    (wrong, "this invite is not one of this run's"),
    (expired, "this invite expired 0.0 hours ago"),
    (revoked, "this invite was revoked"),
    (used_up, "this invite is used up"),
    (of_another_run, "is not the one that made the invite"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_a_bad_invite_gets_a_node_one_sentence_and_nothing_else(
    server: CentralServer,
    elsewhere: Callable[[], Path],
    make: Callable[[CentralServer], Invite],
    says: str,
) -> None:
    invite = make(server)
    folder = elsewhere()
    node = TrainingNode(model(), server.address, invite=str(invite))
    with pytest.raises(Refused, match=says) as caught:
        node.train()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert str(invite) not in str(caught.value)
    assert server.status()["nodes"] == []
    assert node.model is not None
    assert all(torch.equal(a, b) for a, b in zip(node.model.parameters(), model().parameters(), strict=True))
    done = subprocess.run(
        [sys.executable, "-m", "manyhands", "status", "--json"],
        env={**os.environ, "MANYHANDS_STATE_DIR": str(folder), "MANYHANDS_INVITE": str(invite)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert done.stdout == ""
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_node_without_an_invite_is_told_what_prints_one(
    server: CentralServer, elsewhere: Callable[[], Path]
) -> None:
    address = server.address
    elsewhere()
    with pytest.raises(Refused, match=f"port {address[1]}.*`manyhands invite` .* prints a line") as caught:
        TrainingNode(model(), address).train()
    assert caught.value.exit_code == 4
    assert server.status()["nodes"] == []


SAYS = {"ban": "removed from the run by its owner", "revoke": "this invite was revoked"}


@pytest.mark.parametrize("what", ["ban", "revoke"])
def test_who_is_put_out_is_out_within_a_second_and_the_run_goes_on(server: CentralServer, what: str) -> None:
    invite = made(server, uses=5)
    with NodeThread(server, "stays") as stays, NodeThread(server, "goes", invite=str(invite)) as goes:
        stays.wait_until_it_computes()
        goes.wait_until_it_computes()
        nodes = {node["name"]: node["id"] for node in server.status()["nodes"]}
        root = invite_id(invite_key(invite.secret).public_key())
        order = m.AskRevoke(nodes["goes"], ban=True) if what == "ban" else m.AskRevoke(root)
        started = time.monotonic()
        ask(server, order)
        assert goes.ended(5.0)
        assert time.monotonic() - started < 1.0
        assert isinstance(goes.error, Refused)
        assert SAYS[what] in str(goes.error)
        before = server.status()["step"]
        while server.status()["step"] == before:
            assert stays.error is None
        with NodeThread(server, "goes", invite=str(invite)) as again:
            assert again.ended(20.0)
            assert type(again.error) is type(goes.error)
            assert str(again.error) == str(goes.error)
        server.stop()


def test_a_stream_without_a_hello_is_ended_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYHANDS_NETWORK__TIMEOUT", "0.5")
    impatient = build(checkpoint_dir=tmp_path / "checkpoints")
    impatient.start(block=False)
    with (
        dial(Invite.parse(impatient.invite)) as connection,
        pytest.raises(Unreachable, match=r"no hello within 0\.5 s"),
    ):
        connection.stream().receive()
    impatient.stop()
    assert impatient.wait().steps == 0
