"""The secret of an invite stands in the line that is printed to paste, in 0600 files, and nowhere else."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from parties import NodeThread, ask
from security_jobs import build, model

from manyhands.errors import ManyhandsError, Refused
from manyhands.fleet import messages as m
from manyhands.pool.node import TrainingNode
from manyhands.testing import LocalCluster
from manyhands.wire import Role, known_invite
from manyhands.wire.certificates import invite_id, invite_key
from manyhands.wire.invite import Invite

JOBS = Path(__file__).with_name("security_jobs.py")


def forms(invite: Invite | None) -> list[bytes]:
    """Every way in which a secret could be written down."""
    assert invite is not None
    line, secret = str(invite), invite.secret
    number = invite_key(secret).private_numbers().private_value
    texts = [line[5:53], line[8:40], secret.hex(), repr(secret)[2:-1], f"{number:x}", str(number)]
    return [*(text.encode() for text in texts), base64.b64encode(secret), secret]


def found_in(data: bytes, secrets: list[bytes]) -> bool:
    return any(secret in data for secret in secrets)


def processes() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A run of real processes, started by one that was itself given an invite."""
    given = pytest.MonkeyPatch()
    given.setenv("MANYHANDS_INVITE", "mh://" + "x" * 48 + "@elsewhere.example:5555")
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 1_000_000}) as running:
        given.undo()
        running.wait_step(2)
        yield running


def secrets_of(cluster: LocalCluster) -> list[bytes]:
    node = known_invite(cluster.state_dir, cluster.port, Role.NODE)
    return forms(node) + forms(known_invite(cluster.state_dir, cluster.port, Role.OWNER))


def test_ps_shows_no_secret(cluster: LocalCluster) -> None:
    secrets = secrets_of(cluster)
    assert not [p for p in processes() if found_in(read(p / "cmdline"), secrets)]
    ours = [p for p in processes() if b"manyhands.testing.child" in read(p / "cmdline")]
    assert len(ours) >= 2
    for process in ours:
        environment = read(process / "environ")
        assert environment
        assert not found_in(environment, secrets)
        assert b"MANYHANDS_INVITE" not in environment, "an invite of this process is no business of a child"


def test_an_invite_given_as_an_argument_is_hidden_at_once(cluster: LocalCluster) -> None:
    owner = known_invite(cluster.state_dir, cluster.port, Role.OWNER)
    watching = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "status", str(owner), "--watch", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["state"] == "running", "the invite was read"
        shown = read(Path(f"/proc/{watching.pid}/cmdline"))
        assert b"mh://" + b"*" * 48 + b"@" in shown
        assert not found_in(shown, forms(owner))
    finally:
        watching.send_signal(signal.SIGKILL)
        watching.communicate()


def test_logs_and_json_show_no_secret(cluster: LocalCluster) -> None:
    secrets = secrets_of(cluster)
    assert "manyhands join mh://****@" in cluster.logs(), "the line was printed, and its token masked"
    assert not found_in((cluster.logs() + cluster.logs(0)).encode(), secrets)
    for command in (["status", "--json"], ["-vv", "status"], ["config", "show", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "manyhands", *command],
            env={
                **os.environ,
                "MANYHANDS_STATE_DIR": str(cluster.state_dir),
                "MANYHANDS_INVITE": str(known_invite(cluster.state_dir, cluster.port, Role.OWNER)),
            },
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert not found_in(done.stdout + done.stderr, secrets)


def test_files_hold_no_secret_but_those_made_for_it(cluster: LocalCluster) -> None:
    secrets = secrets_of(cluster)
    holders = set()
    for path in (p for p in cluster.folder.rglob("*") if p.is_file() and not p.is_symlink()):
        data = read(path)
        if found_in(data, secrets) or b"PRIVATE KEY" in data:
            holders.add(re.sub(r"\d+", "N", path.relative_to(cluster.folder).as_posix()))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert path.stat().st_uid == os.geteuid()
    mine = {"state/listener-N.json", "state/keys/node-N.key", "checkpoints/run-N/gate/coordinator.key"}
    assert mine <= holders <= mine | {"state/owner-keys/node-N.key"}


def test_a_servers_report_shows_no_secret(tmp_path: Path) -> None:
    target = tmp_path / "short.py"
    target.write_text(
        f"import sys; sys.path.insert(0, {str(JOBS.parent)!r})\nfrom security_jobs import build\n"
    )
    line = tmp_path / "line"
    serving = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "manyhands",
            "-vv",
            "serve",
            f"{target}:build",
            "--json",
            "--invite-file",
            line,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    assert serving.stdout is not None
    head = serving.stdout.readline() + serving.stdout.readline() + serving.stdout.readline()
    invite = Invite.parse(head.split()[-1])
    TrainingNode(model(), (invite.host, invite.port), invite=str(invite)).train()
    out, errors = serving.communicate(timeout=60)
    assert serving.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])["samples_applied"] == 96
    assert not found_in((out + errors).encode(), forms(invite))
    assert stat.S_IMODE(line.stat().st_mode) == 0o600
    assert Invite.parse(line.read_text().split()[-1]) == invite


class Broken(RuntimeError):
    """Raised by a callback of the user's."""


def test_logs_at_debug_and_tracebacks_show_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    enough = threading.Event()

    def on_step(*, step: int, **_: object) -> None:
        if enough.is_set():
            raise Broken(f"step {step}")

    server = build(checkpoint_dir=tmp_path / "checkpoints", on_step=on_step, epochs=1_000_000)
    server.start(block=False)
    capfd.readouterr()  # the line to paste
    node = known_invite(tmp_path / "state", server.address[1], Role.NODE)
    guest = Invite.parse(ask(server, m.AskInvite(5, 1.0, "node"))["invite"])
    raised: list[BaseException] = []
    with NodeThread(server, "stays") as stays, NodeThread(server, "goes", invite=str(guest)) as goes:
        stays.wait_until_it_computes()
        goes.wait_until_it_computes()
        ask(server, m.AskRevoke(invite_id(invite_key(guest.secret).public_key())))
        assert goes.ended(10.0)
        with pytest.raises(Refused) as refused:
            TrainingNode(model(), server.address, invite=str(guest)).train()
        with pytest.raises(ManyhandsError) as damaged:
            TrainingNode(model(), server.address, invite=str(guest)[:-20] + "?" + str(guest)[-19:]).train()
        enough.set()
        with pytest.raises(Broken) as broken:
            server.wait()
    for error in (stays.error, goes.error, refused.value, damaged.value, broken.value):
        assert error is not None
        raised.append(error)
    told = "".join("".join(traceback.format_exception(error)) for error in raised)
    shown = capfd.readouterr()
    everything = "\n".join(
        [told, caplog.text, shown.out, shown.err, repr(server), repr(stays.node), json.dumps(server.status())]
    ).encode()
    assert {record.name.split(".")[0] for record in caplog.records} >= {"manyhands"}
    owner = known_invite(tmp_path / "state", server.address[1], Role.OWNER)
    assert owner is None, "the file goes with its run"
    assert not found_in(everything, forms(node) + forms(guest))
