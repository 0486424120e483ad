"""The doctor: judgements over made-up facts, the command on this machine, and the way to a real coordinator."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from commands import JOBS, environment, last_json, run

from manyhands.clock import ManualClock
from manyhands.diagnosis import coordinator, machine, network, software
from manyhands.diagnosis.finding import Finding, Verdict, bad, exit_code, failed, ok, warn
from manyhands.diagnosis.link import IN_FLIGHT, LinkSpeed, judge_link, measure
from manyhands.diagnosis.torchfacts import Gpu, TorchFacts
from manyhands.errors import ProtocolError, Refused, Unreachable
from manyhands.fleet import messages as m
from manyhands.fleet.visitors import BURST_BYTES, BYTES_PER_SECOND, Echoes, Needs, Standing
from manyhands.testing import LocalCluster
from manyhands.wire import Invite, NodeKey, Role, dial, known_invite

FACTS = TorchFacts("2.13.0+cpu", None, [], False, 4, "AVX2")
NEEDS = Needs(1_000_000, 4_000_000, 8, 1000, "ship", "tolerant", 2)
STANDING = Standing("node", "run-0001", "running", "0.1.0", 1000.0, 4600.0, 3, NEEDS)
HERE = coordinator.Here(1 << 30, 4)
LOCAL = {
    "python", "memory", "state folder", "checkpoints", "address", "port", "proxy", "torch", "device",
}  # fmt: skip
WAY = {"name", "connection", "pin", "entry", "run", "clock", "needs", "link"}


# ---- judgements ----


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("fe80::1%eth0", "link"),
        ("169.254.3.4", "link"),
        ("192.168.1.7", "private"),
        ("10.0.0.1", "private"),
        ("fd12::1", "private"),
        ("100.64.0.1", "shared"),
        ("100.127.255.255", "shared"),
        ("100.128.0.1", "public"),
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
    ],
)
def test_who_can_dial_an_address(address, reach):
    assert network.reach_of(address) == reach


@pytest.mark.parametrize(
    ("addresses", "verdict", "says"),
    [
        (["127.0.0.1"], Verdict.WARN, "no network"),
        (["192.168.1.7"], Verdict.OK, "ssh -R 5555:localhost:5555"),
        (["100.64.0.9", "192.168.1.7"], Verdict.WARN, "no router of yours can forward"),
        (["192.168.1.7", "2606:4700::1"], Verdict.OK, "firewall must let TCP port 5555 in"),
    ],
)
def test_a_coordinators_reach(addresses, verdict, says):
    finding = network.judge_addresses(addresses, 5555)
    assert finding.verdict is verdict
    assert says in finding.do
    assert all(address in finding.found for address in addresses)


@pytest.mark.parametrize(
    ("proxies", "verdict", "says"),
    [
        ({}, Verdict.OK, "direct"),
        ({"https": "http://me:hunter2@proxy.example:3128"}, Verdict.OK, "proxy.example:3128 by CONNECT"),
        (
            {"http": "http://proxy.example", "no": "lan"},
            Verdict.OK,
            "proxy.example:80 by CONNECT, but for lan",
        ),
        ({"https": "socks5://proxy.example:1080"}, Verdict.WARN, "of the kind socks5"),
        ({"https": "http://proxy.example:99999"}, Verdict.OK, "cannot be read"),
    ],
)
def test_what_a_proxy_will_do(proxies, verdict, says):
    finding = network.judge_proxies(proxies)
    assert finding.verdict is verdict
    assert says in finding.found
    assert "hunter2" not in str(finding)


def test_a_port_is_free_held_or_ones_own():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        use = network.read_port(port)
        assert "process" in network.judge_port(use, []).found
        assert network.judge_port(use, []).verdict is Verdict.WARN
        assert network.judge_port(use, [port]).verdict is Verdict.OK
    assert network.read_port(port).is_free


@pytest.mark.parametrize(
    ("facts", "verdict", "says"),
    [
        (FACTS, Verdict.OK, "torch 2.13.0+cpu (no CUDA in this build), 4 threads, AVX2"),
        (msgspec.structs.replace(FACTS, version="2.9.1"), Verdict.WARN, "torch 2.9.1"),
        ("torch is not installed", Verdict.BAD, "not installed"),
    ],
)
def test_a_torch_that_is_new_old_or_missing(facts, verdict, says):
    finding = software.judge_torch(facts, (2, 13))
    assert finding.verdict is verdict
    assert says in finding.found


def test_what_would_be_computed_on():
    gpus = [Gpu("H\x1b[31m100", 80 << 30), Gpu("H100", 80 << 30)]
    several = software.judge_device(msgspec.structs.replace(FACTS, cuda="13.0", gpus=gpus))
    assert "cuda:1 H100 (80 GiB)" in several.found
    assert "\x1b" not in several.found
    assert "--device all" in several.do
    blind = software.judge_device(msgspec.structs.replace(FACTS, cuda="13.0"))
    assert blind.verdict is Verdict.WARN
    assert "driver" in blind.do
    assert software.judge_device(msgspec.structs.replace(FACTS, mps=True)).found == "mps"
    assert software.least_torch() == (2, 13)


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, Verdict.OK, ""),
        ({"kind": "nfs4"}, Verdict.WARN, "no write-ahead log"),
        ({"kind": "fuse.drive"}, Verdict.WARN, "no write-ahead log"),
        ({"free_bytes": 1 << 20}, Verdict.WARN, "make room"),
        ({"is_writable": False}, Verdict.BAD, "checkpoint_dir"),
    ],
)
def test_where_checkpoints_would_lie(changes, verdict, says, tmp_path):
    folder = replace(machine.Folder(tmp_path, tmp_path, True, 1 << 40, "ext4"), **changes)
    finding = machine.judge_checkpoints(folder)
    assert finding.verdict is verdict
    assert says in finding.do


def test_folders_are_looked_at_and_not_made(tmp_path):
    folder = machine.read_folder(tmp_path / "a" / "b")
    assert (folder.stands, folder.is_writable) == (tmp_path, True)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert machine.judge_state(machine.read_folder(tmp_path / "file" / "b")).verdict is Verdict.BAD


def test_memory_counts_what_a_container_leaves():
    memory = machine.Memory(64 << 30, 32 << 30, None)
    assert machine.judge_memory(memory, 4).verdict is Verdict.OK
    assert machine.judge_memory(replace(memory, limit=1 << 28), 4).verdict is Verdict.WARN
    real = machine.read_memory()
    assert 0 < real.usable <= real.total


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, Verdict.OK, ""),
        ({"model_bytes": 1 << 29}, Verdict.WARN, "more memory"),
        ({"threads": 8}, Verdict.WARN, "the report will name both"),
        ({"threads": 8, "numerics": "strict"}, Verdict.WARN, "refuses it"),
        ({"data": "local"}, Verdict.WARN, "dataset=..."),
    ],
)
def test_what_a_run_needs(changes, verdict, says):
    finding = coordinator.judge_needs(msgspec.structs.replace(NEEDS, **changes), HERE)
    assert finding.verdict is verdict
    assert says in finding.do
    assert finding.figures["node_bytes"] == 3 * finding.figures["model_bytes"] + 1000


def test_an_invites_end_and_a_clock_that_differs():
    from manyhands.release import __version__

    here = msgspec.structs.replace(STANDING, release=__version__)
    assert "expires in 1 h 00 min and has 3 uses left" in coordinator.judge_standing(here).found
    over = msgspec.structs.replace(here, time=5000.0)
    assert "expired 6 min 40 s ago" in coordinator.judge_standing(over).found
    other = coordinator.judge_standing(msgspec.structs.replace(STANDING, release="9.9"))
    assert other.verdict is Verdict.WARN
    assert "9.9" in other.do
    assert coordinator.judge_clock(2.0).verdict is Verdict.OK
    slow = coordinator.judge_clock(-3600.0)
    assert slow.verdict is Verdict.WARN
    assert "3600.0 s behind" in slow.found


def test_a_slow_link_is_told_before_the_run_is():
    speed = LinkSpeed(0.04, 1e6, 4e6, 1 << 20)
    assert judge_link(speed, 1_000_000).verdict is Verdict.OK
    slow = judge_link(speed, 40_000_000)
    assert slow.verdict is Verdict.WARN
    assert slow.figures["step_seconds"] == 50.0


def test_a_slow_link_is_measured_with_one_question_each_way():
    """A link of 40 kB/s, by a clock that each question moves."""
    clock, asked = ManualClock(), []

    def ask(question: bytes) -> bytes:
        echo = m.decode_question(question)
        assert isinstance(echo, m.AskEcho)
        asked.append(echo)
        clock.sleep(0.1 + (len(echo.filler) + echo.num_bytes) / 40_000)
        return bytes(echo.num_bytes)

    speed = measure(ask, clock)
    assert speed.round_trip_seconds == pytest.approx(0.1)
    assert speed.up == pytest.approx(40_000)
    assert speed.down == pytest.approx(40_000)
    assert [bool(echo.filler) for echo in asked].count(True) == 1
    assert len(asked) < IN_FLIGHT


def test_how_a_diagnosis_ends():
    unreachable, refused = failed("pin", Unreachable("x")), failed("entry", Refused("y"))
    assert exit_code([ok("a", "b"), warn("c", "d", "e")]) == 0
    assert exit_code([bad("torch", "x", "y"), unreachable]) == 3
    assert exit_code([unreachable, refused]) == 4
    assert exit_code([bad("torch", "x", "y")]) == 5


# ---- what a coordinator answers ----


def spend(echoes: Echoes, question: m.AskEcho, now: float) -> int:
    """How many such questions are answered at one moment."""
    for times in range(BURST_BYTES):
        try:
            assert echoes.answer(question, now) == bytes(question.num_bytes)
        except Refused:
            return times
    raise AssertionError("there is no end to it")


def test_echoes_have_a_budget_that_fills_again():
    echoes, whole = Echoes(), m.AskEcho(bytes(m.ECHO_BYTES), m.ECHO_BYTES)
    cost = 2 * m.ECHO_BYTES + 256
    assert spend(echoes, whole, 0.0) == BURST_BYTES // cost
    assert spend(echoes, whole, 10.0) in (10 * BYTES_PER_SECOND // cost, 10 * BYTES_PER_SECOND // cost + 1)
    assert spend(echoes, m.AskEcho(b"", 0), 20.0) > 0
    assert spend(echoes, whole, 1e9) == BURST_BYTES // cost
    with pytest.raises(Refused, match="ask again in 64 s"):
        echoes.answer(whole, 1e9)


def test_an_echo_asks_for_no_more_than_a_question_holds():
    for question in (m.AskEcho(bytes(m.ECHO_BYTES + 1), 0), m.AskEcho(b"", m.ECHO_BYTES + 1)):
        with pytest.raises(ProtocolError):
            m.decode_question(m.encode_question(question))
    assert len(m.encode_question(m.AskEcho(bytes(m.ECHO_BYTES), m.ECHO_BYTES))) < 1 << 16


# ---- the command, here ----

SPY = """
import sys
from manyhands.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was loaded"
sys.exit(code)
"""


def doctor(*arguments: str, script: str = SPY, python: str = sys.executable, **env: str):
    state = Path(env.pop("state_dir"))
    return subprocess.run(
        [python, "-c", script, "doctor", *arguments],
        env=environment(state, OMP_NUM_THREADS="1", **env),
        cwd=state.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(done) -> dict[str, dict]:
    found = {row["topic"]: row for row in last_json(done)["findings"]}
    assert all(set(row) == {"topic", "verdict", "found", "do", "figures"} for row in found.values())
    return found


def test_a_machine_is_looked_at_without_loading_torch(tmp_path):
    done = doctor("--json", state_dir=str(tmp_path / "state"), https_proxy="socks5://p:1")
    assert done.returncode == 0, done.stderr
    found = rows(done)
    assert set(found) == LOCAL
    assert found["torch"]["figures"]["threads"] == 1
    assert found["proxy"]["verdict"] == "warn"
    answer = last_json(done)
    assert answer["bad"] == 0
    assert answer["ok"] + answer["warn"] == len(LOCAL)
    told = doctor(state_dir=str(tmp_path / "state"))
    assert told.returncode == 0
    assert "no invite: only this machine" in told.stderr
    assert [line.split()[0] for line in told.stdout.splitlines() if not line.startswith(" ")].count("ok")


def test_a_port_that_somebody_holds_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        found = rows(doctor("--json", "--port", port, state_dir=str(tmp_path / "state")))["port"]
    assert found["verdict"] == "warn"
    assert port in found["found"]
    assert "process" in found["found"]


def test_a_torch_that_does_not_load_is_a_finding(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libfoo.so.1: no such file')\n")
    done = doctor("--json", state_dir=str(tmp_path / "state"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 5
    assert "libfoo.so.1" in rows(done)["torch"]["found"]
    assert "device" not in rows(done)


def test_a_machine_without_torch_is_looked_at(tmp_path):
    """The interpreter beside the environment, with everything but torch."""
    base = getattr(sys, "_base_executable", sys.executable)
    bare = subprocess.run([base, "-c", "import torch"], capture_output=True)
    if base == sys.executable or bare.returncode == 0:
        pytest.skip("no interpreter without torch here")
    farm = tmp_path / "packages"
    farm.mkdir()
    for package in Path(msgspec.__file__).parents[1].iterdir():
        if not package.name.startswith(("torch", "functorch")) and package.suffix != ".pth":
            (farm / package.name).symlink_to(package)
    source = Path(machine.__file__).parents[2]
    done = doctor(
        "--json",
        python=base,
        state_dir=str(tmp_path / "state"),
        PYTHONPATH=f"{source}:{farm}",
        PYTHONWARNINGS="",
    )
    assert done.returncode == 5, done.stderr
    assert rows(done)["torch"]["found"] == "torch is not installed"
    assert set(rows(done)) == LOCAL - {"device"}


# ---- the command, against a run ----


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(f"{JOBS}:build", nodes=0, arguments={"epochs": 1_000_000}) as running:
        yield running


def invite_of(cluster, uses: int = 1, hours: float = 1.0) -> Invite:
    owner = known_invite(cluster.state_dir, cluster.port, Role.OWNER)
    with dial(owner) as connection:
        answer = msgspec.json.decode(connection.ask(m.encode_question(m.AskInvite(uses, hours, "node"))))
    return Invite.parse(answer["invite"])


def test_the_way_to_a_run_and_the_same_machine_joins_afterwards(cluster, tmp_path):
    invite, state = invite_of(cluster), tmp_path / "state"
    done = doctor(str(invite), "--json", state_dir=str(state))
    assert done.returncode == 0, done.stdout
    found = rows(done)
    assert set(found) == LOCAL | WAY - {"address"}
    assert found["run"]["figures"]["role"] == "node"
    assert found["run"]["figures"]["uses_left"] == 0
    assert found["needs"]["figures"]["model_bytes"] == 976
    link = found["link"]["figures"]
    assert min(link["up_bytes_per_s"], link["down_bytes_per_s"]) > 10_000
    assert link["moved_bytes"] <= 17 << 20
    assert abs(found["clock"]["figures"]["offset_seconds"]) < 5.0
    assert str(invite) not in done.stdout + done.stderr
    key = NodeKey.claim(state / "keys")  # as `join` will, and finds its one use taken by itself
    dial(invite, key=key).close()
    key.release()


def test_the_coordinators_own_machine_needs_no_line(cluster):
    found = rows(doctor("--json", "--port", str(cluster.port), state_dir=str(cluster.state_dir)))
    assert found["run"]["figures"]["role"] == "owner"
    assert found["port"]["verdict"] == "ok"
    assert "your coordinator" in found["port"]["found"]


VERSION = """
import sys
from manyhands.wire import dialer
dialer.PROTOCOL = {version}
from manyhands.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("version", "who"), [(0, "on this machine"), (7, "on the coordinator")])
def test_another_version_is_told_who_upgrades(version, who, cluster, tmp_path):
    script = VERSION.format(version=version)
    done = doctor(str(invite_of(cluster)), "--json", script=script, state_dir=str(tmp_path / "state"))
    assert done.returncode == 4
    assert f"upgrade manyhands {who}" in rows(done)["entry"]["found"]


def test_whatever_is_wrong_with_a_line_is_said(cluster, tmp_path):
    state, good = str(tmp_path / "state"), invite_of(cluster)
    for line in (str(good)[:30], str(good).replace("@", "x@"), "mh://", f"{good}0000"):
        cut = doctor(line, state_dir=state)
        assert cut.returncode == 2
        assert "invite" in cut.stderr or "port" in cut.stderr
        assert cut.stdout == ""
    expired = doctor(str(invite_of(cluster, hours=1e-9)), "--json", state_dir=state)
    assert expired.returncode == 4
    assert "expired" in rows(expired)["entry"]["found"]
    stranger = doctor(str(replace(good, pin=bytes(16))), "--json", state_dir=state)
    assert stranger.returncode == 4
    assert "not the one that made the invite" in rows(stranger)["pin"]["found"]
    nobody = doctor(str(good.with_address("127.0.0.1", 9)), "--json", state_dir=state)
    assert nobody.returncode == 3
    assert "127.0.0.1:9" in rows(nobody)["connection"]["found"]
    nowhere = doctor(str(good.with_address("no-such-host.invalid", 9)), "--json", state_dir=state)
    assert nowhere.returncode == 3
    assert "no-such-host.invalid" in rows(nowhere)["name"]["found"]
    assert str(good) not in stranger.stdout + nobody.stdout + nowhere.stdout


def test_a_coordinator_that_was_here_keeps_nobody_out(tmp_path):
    with LocalCluster(f"{JOBS}:build", nodes=0, arguments={"epochs": 1_000_000}) as cluster:
        cluster.kill_coordinator()
        done = run("doctor", "--json", state_dir=cluster.state_dir)
    assert done.returncode == 0, done.stdout
    found: Finding = rows(done)["connection"]
    assert found["verdict"] == "warn"
    assert "--resume auto" in found["do"]
