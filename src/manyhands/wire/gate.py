"""The gate: a small table of invites and of the keys that came in with them. The table is the authority.

TLS only proves that a peer holds a key and that some invite signed it; whether it may come in, and in which
role, is decided here, at each call and again whenever the table changes. Only public roots and hashes are
stored; the secret of an invite is forgotten as soon as its line is made. Several processes may hold the
table of one state folder open. The gate knows no gRPC.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from manyhands.clock import Clock
from manyhands.errors import Refused, StorageError, UsageError
from manyhands.wire import certificates
from manyhands.wire.admission import InviteRow, Peer, Role, may_enter, standing
from manyhands.wire.invite import Invite
from manyhands.wire.private import create_private, private_folder

_SCHEMA = """
create table if not exists invite(
    id text primary key, root blob not null, role text not null, uses integer not null,
    created real not null, expires real not null, revoked integer not null default 0);
create table if not exists peer(
    key text, invite text, first_seen real not null, primary key (key, invite));
create table if not exists ban(key text primary key, since real not null);
create table if not exists version(changes integer not null);
insert into version select 0 where not exists (select 1 from version);
"""
_COLUMNS = "id, role, uses, created, expires, revoked"
_MOST_INVITES = 256
_WEEK_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """The coordinator's own key and certificate (PEM), and the pin that finds it."""

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    pin: bytes


class Gate:
    """Invites, admitted keys and bans of one coordinator, kept in `folder`.

    All methods may be called from any thread, after `open` and before `close`. They raise `StorageError`
    where the table cannot be read or written.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._identity: Identity | None = None
        self._listeners: list[Callable[[], None]] = []

    def open(self) -> None:
        """Open or make the table and the coordinator's key; both are readable by their owner only."""
        private_folder(self.folder)
        self._identity = _load_identity(self.folder)
        path = self.folder / "gate.sqlite"
        # SQLite gives its journal the mode of the database, so making that one first is enough.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        with self._transaction() as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            self._prune(database)

    def close(self) -> None:
        """Close the table; further calls raise `StorageError`. A second close does nothing."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    @property
    def identity(self) -> Identity:
        """The coordinator's key, certificate and pin; the same after each restart in this folder."""
        if self._identity is None:
            raise StorageError("the gate is not open", str(self.folder))
        return self._identity

    def add(
        self, role: Role | str = Role.NODE, uses: int = 64, hours: float = 24.0, *, host: str, port: int
    ) -> Invite:
        """A new invite for up to `uses` new keys within `hours`, to be dialled at `host:port`.

        This is the only moment at which its secret exists here. Raises `UsageError` for an unknown role,
        no uses, no time, or more invites than a handshake can carry.
        """
        role, secret = _check_request(role, uses, hours), secrets.token_bytes(16)
        key = certificates.invite_key(secret)
        invite_id, root = (
            certificates.invite_id(key.public_key()),
            certificates.to_pem(certificates.invite_root(key)),
        )
        invite, now = Invite(secret, self.identity.pin, host, port), self._clock.time()
        with self._transaction() as database:
            self._make_room(database)
            row = (invite_id, root, role.value, uses, now, now + hours * 3600)
            database.execute("insert into invite values(?, ?, ?, ?, ?, ?, 0)", row)
            _count_change(database)
        self._tell()
        return invite

    def admit(self, leaf_pem: bytes) -> Peer:
        """The peer behind a certificate; a key that is new here takes one use of its invite, atomically.

        Raises `Refused` with one sentence that says why not.
        """
        leaf, key_id, invite_id = certificates.read_leaf(leaf_pem)
        with self._reading() as database:
            found = database.execute("select root from invite where id = ?", (invite_id,)).fetchone()
            if found is not None and not certificates.is_signed_by(leaf, bytes(found[0])):
                raise Refused("this node's certificate was not signed by the invite that it names")
            peer = self._enter(database, key_id, invite_id, is_final=False)
        if peer is not None:
            return peer
        with self._transaction() as database:
            peer = self._enter(database, key_id, invite_id, is_final=True)
        assert peer is not None
        return peer

    def standing(self, peer: Peer) -> str | None:
        """Why a peer that was let in may not stay (revoked, removed), as one sentence; None where it may."""
        with self._reading() as database:
            return standing(_row(database, peer.invite_id), _is_banned(database, peer.key_id))

    def revoke(self, invite_id: str) -> None:
        """End an invite and everybody who came in with it. Raises `UsageError` for an unknown id."""
        with self._transaction() as database:
            if database.execute("update invite set revoked = 1 where id = ?", (invite_id,)).rowcount == 0:
                raise UsageError(f"no invite of this run has the id {invite_id[:80]!r}")
            _count_change(database)
        self._tell()

    def ban(self, key_id: str) -> None:
        """Remove a key for good, whatever invite it comes with. (Who holds an invite can make a new key:
        revoke that invite too.)
        """
        with self._transaction() as database:
            database.execute("insert or ignore into ban values(?, ?)", (key_id, self._clock.time()))
            _count_change(database)
        self._tell()

    def invites(self) -> list[InviteRow]:
        """All invites, the newest last, without their secrets: those are not known here."""
        with self._reading() as database:
            rows = database.execute(f"select {_COLUMNS} from invite order by created, rowid")  # noqa: S608
            return [_to_row(row) for row in rows]

    def roots(self) -> bytes:
        """The public roots of all invites as PEM: revoked and expired ones too, so that they are told why."""
        with self._reading() as database:
            return b"".join(
                row[0] for row in database.execute("select root from invite order by created, rowid")
            )

    def version(self) -> int:
        """A number that grows with each change to invites or bans, whichever process made it."""
        with self._reading() as database:
            return int(database.execute("select changes from version").fetchone()[0])

    def on_change(self, tell: Callable[[], None]) -> None:
        """Call `tell` after each change that this process makes, in the thread that made it."""
        self._listeners.append(tell)

    def _enter(
        self, database: sqlite3.Connection, key_id: str, invite_id: str, *, is_final: bool
    ) -> Peer | None:
        """The peer if it may come in without a use; with `is_final`, take the use."""
        invite = _row(database, invite_id)
        seen = database.execute(
            "select 1 from peer where key = ? and invite = ?", (key_id, invite_id)
        ).fetchone()
        now = self._clock.time()
        reason = may_enter(invite, _is_banned(database, key_id), seen is not None, now)
        if reason is not None or invite is None:
            raise Refused(reason or "this invite is not one of this run's")
        if seen is None and not is_final:
            return None
        if seen is None:
            database.execute("update invite set uses = uses - 1 where id = ?", (invite_id,))
            database.execute("insert into peer values(?, ?, ?)", (key_id, invite_id, now))
        return Peer(key_id, invite.role, invite_id)

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Each root is named in every handshake, so their number is bounded; unused ones go first."""
        self._prune(database)
        if database.execute("select count(*) from invite").fetchone()[0] < _MOST_INVITES:
            return
        unused = "select id from invite where id not in (select invite from peer) order by created limit 1"
        if database.execute(f"delete from invite where id in ({unused})").rowcount == 0:  # noqa: S608
            raise UsageError(f"this run has {_MOST_INVITES} invites in use: use one of them for more nodes")

    def _prune(self, database: sqlite3.Connection) -> None:
        """Forget invites that ended more than a week ago; until then they are told why they are refused."""
        old = self._clock.time() - _WEEK_SECONDS
        database.execute(
            "delete from invite where expires < ? and (revoked or id not in (select invite from peer))",
            (old,),
        )

    def _tell(self) -> None:
        for tell in list(self._listeners):
            tell()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database is None:
                raise StorageError("the gate is closed", str(self.folder))
            try:
                yield self._database
            except sqlite3.Error as error:
                raise StorageError(
                    f"the table of invites in {self.folder} failed: {error}", str(self.folder)
                ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, against other threads (the lock) and other processes (`immediate`)."""
        with self._reading() as database:
            database.execute("begin immediate")
            try:
                yield database
            except BaseException:
                database.execute("rollback")
                raise
            database.execute("commit")


def _load_identity(folder: Path) -> Identity:
    path = folder / "coordinator.key"
    pem = create_private(path, lambda: certificates.key_to_pem(certificates.new_key()))
    try:
        key = certificates.key_from_pem(pem)
    except ValueError:
        raise UsageError(
            f"{path} is not a coordinator's key: move it away, and every invite with it"
        ) from None
    # Signed anew at each start: only the key is pinned, and one file cannot disagree with another.
    certificate = certificates.to_pem(certificates.coordinator_certificate(key))
    return Identity(pem, certificate, certificates.fingerprint(key.public_key()))


def _check_request(role: Role | str, uses: int, hours: float) -> Role:
    if role not in list(Role):
        raise UsageError(f"role: {str(role)[:40]!r} is none of {', '.join(Role)}")
    if not 1 <= uses <= 1_000_000:
        raise UsageError(f"uses: an invite is for 1 to 1,000,000 nodes, not {uses}")
    if not 0 < hours <= 24 * 3660:
        raise UsageError(f"hours: an invite lives for more than 0 hours and at most ten years, not {hours}")
    return Role(role)


def _row(database: sqlite3.Connection, invite_id: str) -> InviteRow | None:
    row = database.execute(f"select {_COLUMNS} from invite where id = ?", (invite_id,)).fetchone()  # noqa: S608
    return None if row is None else _to_row(row)


def _to_row(row: tuple[str, str, int, float, float, int]) -> InviteRow:
    invite_id, role, uses, created, expires, revoked = row
    return InviteRow(invite_id, Role(role), uses, created, expires, bool(revoked))


def _is_banned(database: sqlite3.Connection, key_id: str) -> bool:
    return database.execute("select 1 from ban where key = ?", (key_id,)).fetchone() is not None


def _count_change(database: sqlite3.Connection) -> None:
    database.execute("update version set changes = changes + 1")
