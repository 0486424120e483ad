"""The compute process holds no invite, no key and no way out: its memory, descriptors, environment and command line."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from lent import ENDLESS, OWN_JOBS, coordinator, join, wait_steps

from manyhands.wire.invite import Invite
from manyhands.wire.known import known_invite

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads another process's memory through /proc"
)

SPY = """
import os, sys, threading
if any("lending.child" in word for word in sys.orig_argv):
    kinds = {"open", "compile", "exec", "import", "marshal.loads", "subprocess.Popen", "os.system", "ctypes.dlopen"}
    told = os.open(os.path.join(os.path.dirname(__file__), "audit.txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    def hook(event, arguments):
        if event in kinds:
            if any(thread.name == "manyhands-pulse" for thread in threading.enumerate()):
                os.write(told, f"{event} {str(arguments)[:200]}\\n".encode())
    sys.addaudithook(hook)
    os.write(told, b"listening\\n")
"""
ALLOWED = {"LANG", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}


def memory(pid: int) -> bytes:
    """Everything that a process has mapped and may read, but for what lies in files of the system."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_, name = f"{line} -".split(" ", 5)
            if "r" not in mode or ".so" in name or "[v" in name:
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            try:
                mem.seek(start)
                found.append(mem.read(end - start))
            except OSError:
                continue  # mapped, and not there: a guard page
    return b"\0".join(found)


def secrets(state: Path, invite: Invite) -> dict[str, bytes]:
    (key_file,) = (state / "keys").glob("node-*.key")
    pem = key_file.read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    return {
        "token": str(invite).removeprefix("mh://").partition("@")[0].encode(),
        "secret": invite.secret,
        "key file": b"".join(pem.splitlines()[1:2]),
        "key": number.to_bytes(32, "big"),
        "key, reversed": number.to_bytes(32, "little"),
    }


def test_the_compute_process_has_no_secrets_and_no_network(tmp_path):
    with coordinator(**ENDLESS) as cluster:
        invite = known_invite(cluster.state_dir, cluster.port)
        assert invite is not None
        with join(
            str(invite), state=tmp_path / "state", folder=tmp_path / "a", SECRET="s3cr3t-value"
        ) as joined:
            wait_steps(cluster, 2)
            child, wanted = joined.child(), secrets(tmp_path / "state", invite)
            wanted["environment"] = b"s3cr3t-value"
            agents = memory(joined.process.pid)
            assert [name for name in ("token", "environment") if wanted[name] not in agents] == []
            held = memory(child.pid)
            assert len(held) > 20e6, "torch alone is more"
            assert [name for name, secret in wanted.items() if secret in held] == []
            assert set(child.environ()) <= ALLOWED
            assert child.net_connections(kind="inet") == []
            kinds = sorted(
                str(entry.readlink()).split(":")[0] for entry in Path(f"/proc/{child.pid}/fd").iterdir()
            )
            assert kinds == ["/dev/null", "/memfd", "pipe", "pipe", "socket", "socket"]
            assert invite.secret not in " ".join(child.cmdline()).encode()
            assert "mh://" not in " ".join(child.cmdline())
            assert "mh://****" in " ".join(psutil.Process(joined.process.pid).cmdline())


def test_the_compute_process_is_small_and_low(tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        wait_steps(cluster)
        child = joined.child()
        assert child.nice() >= 10
        assert psutil.Process(joined.process.pid).nice() >= 10
        assert child.rlimit(resource.RLIMIT_CORE) == (0, 0)
        assert child.rlimit(resource.RLIMIT_NOFILE)[1] <= 64
        assert child.rlimit(resource.RLIMIT_DATA)[1] <= psutil.virtual_memory().total
        assert os.getsid(child.pid) == child.pid
        assert list(Path(child.cwd()).iterdir()) == []
        assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()


def test_nothing_is_compiled_run_or_opened_once_a_program_may_come(tmp_path):
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    with (
        coordinator(f"{OWN_JOBS}:wide") as cluster,
        join(state=cluster.state_dir, folder=tmp_path / "a", PYTHONPATH=str(spy)) as joined,
    ):
        assert cluster.wait(90)["samples_applied"] == 128
        assert joined.ends() == 0, joined.errors
    assert (spy / "audit.txt").read_text() == "listening\n"
