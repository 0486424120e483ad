"""The table: what it stores, what it forgets, and who wins when many want the last use."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manyhands.clock import ManualClock
from manyhands.errors import Refused, StorageError, UsageError
from manyhands.wire import Gate, Invite, InviteRow, Role, certificates
from manyhands.wire.admission import may_enter, standing

HOUR = 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.0)


@pytest.fixture
def gate(tmp_path: Path, clock: ManualClock) -> Iterator[Gate]:
    gate = Gate(tmp_path / "state", clock)
    gate.open()
    yield gate
    gate.close()


def add(gate: Gate, role: str = "node", uses: int = 64, hours: float = 24.0) -> Invite:
    return gate.add(role, uses, hours, host="localhost", port=5555)


def leaf(invite: Invite) -> bytes:
    signer = certificates.invite_key(invite.secret)
    return certificates.to_pem(certificates.node_leaf(certificates.new_key().public_key(), signer))


def test_files_are_for_their_owner_only_and_hold_no_secret(gate: Gate) -> None:
    invite = add(gate)
    gate.admit(leaf(invite))
    assert stat.S_IMODE(gate.folder.stat().st_mode) == 0o700
    files = sorted(path.name for path in gate.folder.iterdir())
    assert files == ["coordinator.key", "gate.sqlite"]
    for path in gate.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert invite.secret not in path.read_bytes()


def test_roles_come_from_the_invite(gate: Gate) -> None:
    for role in Role:
        assert gate.admit(leaf(add(gate, role))).role is role


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (("king", 1, 1.0), "role: 'king'"),
        (("node", 0, 1.0), "uses:"),
        (("node", 1, 0.0), "hours:"),
        (("node", 1, float("nan")), "hours:"),
    ],
)
def test_a_request_that_makes_no_sense_names_the_field(
    gate: Gate, request_: tuple[str, int, float], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        add(gate, *request_)
    assert gate.invites() == []


def test_uses_are_counted_once_a_key(gate: Gate) -> None:
    invite = add(gate, uses=2)
    first = leaf(invite)
    for _ in range(3):
        gate.admit(first)
    assert gate.invites()[0].uses_left == 1
    gate.admit(leaf(invite))
    with pytest.raises(Refused, match="used up"):
        gate.admit(leaf(invite))
    gate.admit(first)


def test_sixteen_threads_race_for_the_last_use(gate: Gate) -> None:
    invite = add(gate, uses=1)

    def enter(pem: bytes) -> bool:
        try:
            gate.admit(pem)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(enter, [leaf(invite) for _ in range(16)])) == 1


def enter_from_outside(folder: Path, pems: list[bytes], start: object) -> None:
    """Runs in a process of its own."""
    gate = Gate(folder, ManualClock(1_700_000_000.0))
    gate.open()
    start.wait(30)  # type: ignore[attr-defined]
    for pem in pems:
        try:
            gate.admit(pem)
        except Refused:
            continue
    gate.close()


def test_processes_race_for_the_last_uses(gate: Gate) -> None:
    invite, context = add(gate, uses=3), multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    leaves = [[leaf(invite) for _ in range(8)] for _ in range(3)]
    processes = [
        context.Process(target=enter_from_outside, args=(gate.folder, part, start)) for part in leaves
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert gate.invites()[0].uses_left == 0
    known = [pem for part in leaves for pem in part if is_in(gate, pem)]
    assert len(known) == 3


def is_in(gate: Gate, pem: bytes) -> bool:
    try:
        gate.admit(pem)
    except Refused:
        return False
    return True


def test_what_was_not_signed_by_the_invite_it_names_is_refused(gate: Gate) -> None:
    owner, node = (certificates.invite_key(add(gate, role).secret) for role in ("owner", "node"))
    key = certificates.new_key()
    forged = certificates._sign(
        "node", key.public_key(), certificates.invite_id(owner.public_key()), node, is_root=False
    )
    with pytest.raises(Refused, match="was not signed by the invite that it names"):
        gate.admit(certificates.to_pem(forged))


@pytest.mark.parametrize(
    "pem", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_refused(gate: Gate, pem: bytes) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        gate.admit(pem)


def test_reopening_keeps_everything(gate: Gate, clock: ManualClock) -> None:
    invite, roots = add(gate, uses=1), None
    pem = leaf(invite)
    peer, roots, identity = gate.admit(pem), gate.roots(), gate.identity
    gate.ban("ab" * 16)
    gate.close()
    again = Gate(gate.folder, clock)
    again.open()
    assert again.admit(pem) == peer
    assert again.roots() == roots
    assert (again.identity.pin, again.identity.key_pem) == (identity.pin, identity.key_pem)
    again.close()


def test_a_change_is_told_and_counted_across_processes(gate: Gate, clock: ManualClock) -> None:
    told: list[int] = []
    gate.on_change(lambda: told.append(gate.version()))
    before = gate.version()
    add(gate)
    gate.ban("ab" * 16)
    assert told == [before + 1, before + 2]
    other = Gate(gate.folder, clock)
    other.open()
    other.revoke(other.invites()[0].invite_id)
    other.close()
    assert gate.version() == before + 3
    assert len(told) == 2


def test_standing_follows_the_table(gate: Gate) -> None:
    peer = gate.admit(leaf(add(gate)))
    assert gate.standing(peer) is None
    gate.ban(peer.key_id)
    assert "removed" in (gate.standing(peer) or "")
    gate.revoke(peer.invite_id)
    assert "revoked" in (gate.standing(peer) or "")


def test_an_unknown_invite_cannot_be_revoked(gate: Gate) -> None:
    with pytest.raises(UsageError, match="invite-00"):
        gate.revoke("invite-00")


def test_ended_invites_are_forgotten_after_a_week_but_not_those_of_living_nodes(
    gate: Gate, clock: ManualClock
) -> None:
    unused, used, revoked = (add(gate, hours=1.0) for _ in range(3))
    pem = leaf(used)
    gate.admit(pem)
    gate.admit(leaf(revoked))
    gate.revoke(gate.invites()[2].invite_id)
    clock.sleep(6 * 24 * HOUR)
    with pytest.raises(Refused, match="expired"):
        gate.admit(leaf(unused))
    clock.sleep(2 * 24 * HOUR)
    add(gate)
    assert len(gate.invites()) == 2
    gate.admit(pem)
    with pytest.raises(Refused, match="not one of this run's"):
        gate.admit(leaf(unused))


def test_the_number_of_roots_in_a_handshake_is_bounded(gate: Gate) -> None:
    """A coordinator that is killed and started for days makes two invites each time."""
    first = add(gate)
    pem = leaf(first)
    gate.admit(pem)
    for _ in range(260):
        add(gate)
    assert len(gate.invites()) == 256
    gate.admit(pem)


def test_a_closed_or_broken_table_is_a_storage_error(gate: Gate, tmp_path: Path, clock: ManualClock) -> None:
    gate.close()
    gate.close()
    with pytest.raises(StorageError, match="closed"):
        gate.invites()
    folder = tmp_path / "broken"
    folder.mkdir(mode=0o700)
    (folder / "gate.sqlite").write_bytes(b"not a database" * 100)
    broken = Gate(folder, clock)
    with pytest.raises(StorageError, match="table of invites"):
        broken.open()
    broken.close()


def test_a_coordinator_key_that_others_can_read_is_refused(gate: Gate, clock: ManualClock) -> None:
    gate.close()
    (gate.folder / "coordinator.key").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        Gate(gate.folder, clock).open()


def test_the_decision_alone() -> None:
    row = InviteRow("invite-1", Role.NODE, uses_left=1, created=0.0, expires=10.0, revoked=False)
    gone = InviteRow("invite-1", Role.NODE, uses_left=0, created=0.0, expires=10.0, revoked=True)
    used = InviteRow("invite-1", Role.NODE, uses_left=0, created=0.0, expires=10.0, revoked=False)
    assert may_enter(row, False, False, 9.9) is None
    assert "expired" in (may_enter(row, False, False, 10.0) or "")
    assert "used up" in (may_enter(used, False, False, 5.0) or "")
    assert may_enter(used, False, True, 99.0) is None
    for is_known in (False, True):
        assert "revoked" in (may_enter(gone, False, is_known, 5.0) or "")
        assert "removed" in (may_enter(row, True, is_known, 5.0) or "")
        assert "not one of" in (may_enter(None, False, is_known, 5.0) or "")
    assert standing(used, False) is None


def test_the_table_is_plain_sqlite_without_leftovers(gate: Gate) -> None:
    add(gate)
    with pytest.raises(Refused):
        gate.admit(b"")
    gate.close()
    database = sqlite3.connect(gate.folder / "gate.sqlite")
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()
