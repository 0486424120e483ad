"""Launches over several machines: rank flags between two network namespaces, ssh to real sshds, and what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launcher
from machines import PYTHON, Machine, Sshds, free_port, two_namespaces

from manyhands.launch.addresses import answers, interface_of, source_address
from manyhands.testing.process import wait_for

LAUNCH = (PYTHON, "-m", "manyhands", "launch")
SUM = """
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
print("ranks", int(ones))
dist.destroy_process_group()
"""
PLAIN = "import os, sys\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n"


def start(machine: Machine, folder: Path, *words: str) -> subprocess.Popen[str]:
    return machine.start(*LAUNCH, *words, folder=folder)


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    ended: list[tuple[int, str, str]] = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=90)
            ended.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.communicate(timeout=20)
    return ended


HERE = Machine("", "127.0.0.1")


@pytest.mark.slow
def test_two_machines_by_rank_flags_between_network_namespaces(launch: Launcher) -> None:
    script = launch.write(SUM)
    with two_namespaces() as (a, b):
        flags = (
            "--nproc_per_node",
            "2",
            "--nnodes",
            "2",
            "--master_addr",
            a.address,
            "--master_port",
            "29500",
        )
        second = start(b, launch.folder, *flags, "--node_rank", "1", str(script))
        first = start(a, launch.folder, *flags, "--node_rank", "0", str(script))
        (code, out, _), (other_code, other_out, _) = finish(first, second)
    host = socket.gethostname()
    assert (code, other_code) == (0, 0)
    assert out == f"[{host}:0-1] ranks 4\n"
    assert other_out == f"[{host}:2-3] ranks 4\n"


@pytest.mark.slow
def test_a_join_line_is_printed_and_can_be_typed_elsewhere(launch: Launcher) -> None:
    script = launch.write(SUM)
    with two_namespaces() as (a, b):
        # Without a default route a machine knows no address of its own: it is told.
        first = start(
            a, launch.folder, "--nnodes", "2", "--master-addr", a.address, "--nproc", "1", str(script)
        )
        line = next(line for line in first.stderr if "--node-rank 1" in line)
        words = line.partition("manyhands launch ")[2].split()
        second = start(b, launch.folder, *words)
        assert [code for code, _, _ in finish(first, second)] == [0, 0]


@pytest.mark.slow
def test_the_usual_port_is_in_use(launch: Launcher) -> None:
    script = launch.write(SUM)
    hold = "import socket, time; s = socket.create_server(('', 29500)); print('held', flush=True); time.sleep(1000)"
    with two_namespaces() as (a, b):
        holder = a.start(PYTHON, "-c", hold, folder=launch.folder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = ("--nnodes", "2", "--master-addr", a.address, "--nproc", "1")
        asked = start(a, launch.folder, *words, "--master-port", "29500", str(script))
        first = start(a, launch.folder, *words, str(script))
        assert first.stderr is not None
        line = next(line for line in first.stderr if "--node-rank 1" in line)
        assert "--master-port 29500" not in line
        second = start(b, launch.folder, *line.partition("manyhands launch ")[2].split())
        (code, _, err), *others = finish(asked, first, second)
        holder.kill()
        holder.communicate()
    assert code == 2
    assert f"--master-port 29500 is in use by process {holder.pid}" in err
    assert [code for code, _, _ in others] == [0, 0]


def test_the_failure_of_one_machine_is_told_on_both(launch: Launcher) -> None:
    port = str(free_port())
    script = launch.write(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n    raise ValueError('boom')\n"
        "time.sleep(1000)\n"
    )
    flags = ("--nproc", "1", "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    second = start(HERE, launch.folder, *flags, "--node-rank", "1", str(script))
    done = launch(script, *flags)
    [(code, _, err)] = finish(second)
    for each_code, each_err in ((done.code, done.err), (code, err)):
        assert each_code == 1
        assert f"rank 1 on {socket.gethostname()} failed first" in each_err
        assert each_err.endswith("ValueError: boom\n")
    assert done.code == 1


@pytest.mark.slow
def test_machines_that_come_and_go(launch: Launcher) -> None:
    port = str(free_port())
    script = launch.write(PLAIN)
    flags = ("--nproc", "1", "--nnodes", "1:2", "--master-addr", "127.0.0.1", "--master-port", port)
    second = start(HERE, launch.folder, *flags, "--node-rank", "1", str(script))
    done = launch(script, *flags)
    [(code, _, _)] = finish(second)
    assert (done.code, code) == (0, 0)


def test_world_sizes_that_do_not_match_and_node_ranks_twice(launch: Launcher) -> None:
    port = str(free_port())
    script = launch.write(PLAIN)
    at = ("--nproc", "1", "--master-addr", "127.0.0.1", "--master-port", port)
    first = start(HERE, launch.folder, *at, "--nnodes", "2", str(script))
    wait_for(lambda: answers("127.0.0.1", int(port), 1.0) is None, 60, "node 0")
    another = launch(script, *at, "--nnodes", "3", "--node-rank", "1")
    assert another.code == 4
    host = socket.gethostname()
    assert f"this machine was started with --nnodes 3, {host} (node 0) with --nnodes 2" in another.err

    second = launch(script, *at, "--nnodes", "2", "--node-rank", "1")
    [(code, _, _)] = finish(first)
    assert (code, second.code) == (0, 0)  # bad input lost nothing


@pytest.mark.slow
def test_a_node_rank_that_is_taken(launch: Launcher) -> None:
    port = str(free_port())
    script = launch.write(PLAIN)
    at = ("--nproc", "1", "--master-addr", "127.0.0.1", "--master-port", port, "--nnodes", "3")
    first = start(HERE, launch.folder, *at, str(script))
    second = start(HERE, launch.folder, *at, "--node-rank", "1", str(script))
    assert second.stderr is not None
    next(line for line in second.stderr if "waiting for node 2 of 3" in line)
    again = launch(script, *at, "--node-rank", "1")
    assert again.code == 4
    assert f"node rank 1 is taken by {socket.gethostname()} (process {second.pid})" in again.err
    third = launch(script, *at, "--node-rank", "2")
    assert [third.code, *(code for code, _, _ in finish(first, second))] == [0, 0, 0]


def test_a_master_that_does_not_answer(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "0.5")
    port = str(free_port())
    script = launch.write(PLAIN)
    done = launch(
        script, "--nnodes", "2", "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", port
    )
    assert done.code == 3
    assert f"node 0 at 127.0.0.1 port {port} did not answer within 0.5 s (Connection refused)" in done.err
    done = launch(script, "--nnodes", "2", "--node-rank", "1")
    assert done.code == 2
    assert "say where node 0 is" in done.err


def test_a_master_address_that_is_another_machines(launch: Launcher) -> None:
    done = launch("", "--nnodes", "2", "--master-addr", "192.0.2.1", "--master-port", str(free_port()))
    assert done.code == 2
    assert "--master-addr 192.0.2.1 does not lead to this machine" in done.err


def test_which_interface_leads_to_the_master() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert source_address("no-such-host.invalid") is None
    assert interface_of("127.0.0.1") in (None, "lo", "lo0")


# ---- ssh ----


@pytest.fixture
def sshds(tmp_path: Path) -> Iterator[Sshds]:
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    opened = Sshds(folder)
    for address in ("127.0.0.2", "127.0.0.3"):
        opened.start(address)
    yield opened
    opened.close()


def test_one_command_starts_two_machines(launch: Launcher, sshds: Sshds) -> None:
    (launch.folder / "hosts").write_text("127.0.0.2 slots=2\n127.0.0.3:1  # the other\n")
    done = launch(
        PLAIN + "print('args', sys.argv[1:])",
        "--ssh",
        sshds.command,
        "--hostfile",
        "hosts",
        arguments=("it's", "--x"),
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert sorted(line for line in lines if "rank" in line) == [
        "[127.0.0.2:0] rank 0 of 3",
        "[127.0.0.2:1] rank 1 of 3",
        "[127.0.0.3:2] rank 2 of 3",
    ]
    assert {line.partition("] ")[2] for line in lines if "args" in line} == {"args [\"it's\", '--x']"}


@pytest.mark.slow
def test_the_root_cause_among_hosts_and_what_ssh_cannot_reach(launch: Launcher, sshds: Sshds) -> None:
    script = (
        "import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('boom')\ntime.sleep(1000)\n"
    )
    done = launch(script, "--ssh", sshds.command, "--hosts", "127.0.0.2:1,127.0.0.3:1")
    assert done.code == 1
    assert "rank 1 on 127.0.0.3 failed first, with exit code 1" in done.err
    assert done.err.endswith("ValueError: boom\n")


def test_a_host_that_ssh_cannot_reach_is_named_and_the_others_are_stopped(
    launch: Launcher, sshds: Sshds
) -> None:
    done = launch("raise SystemExit(9)", "--ssh", sshds.command, "--hosts", "127.0.0.2:1,127.0.0.9:1")
    assert done.code == 3
    assert "ssh cannot reach 127.0.0.9 (ssh: connect to host 127.0.0.9" in done.err
    assert done.out == ""


@pytest.mark.slow
def test_a_script_that_is_missing_there_and_a_python_that_is(launch: Launcher, sshds: Sshds) -> None:
    at = ("--ssh", sshds.command, "--hosts", "127.0.0.2:1,127.0.0.3:1")
    done = launch.words(*at, "nowhere.py")
    assert done.code == 2
    assert "the script nowhere.py does not exist" in done.err
    done = launch.words(*at, "--remote-python", "/nowhere/python", "nowhere.py")
    assert done.code == 5
    assert re.search(
        r"the launcher on 127\.0\.0\.[23] ended with exit code 127", done.err
    )  # whoever is first


@pytest.mark.slow
def test_ctrl_c_ends_the_ranks_on_all_hosts(launch: Launcher, sshds: Sshds) -> None:
    script = launch.write("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(1000)\n")
    launcher = start(
        HERE, launch.folder, "--ssh", sshds.command, "--hosts", "127.0.0.2:1,127.0.0.3:1", str(script)
    )
    assert launcher.stdout is not None
    pids = [int(re.findall(r"pid (\d+)", launcher.stdout.readline())[0]) for _ in range(2)]
    launcher.send_signal(signal.SIGINT)
    [(code, _, err)] = finish(launcher)
    assert code == 130
    assert "stopped by SIGINT" in err
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_rank_on_any_host(launch: Launcher, sshds: Sshds) -> None:
    script = launch.write("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(1000)\n")
    launcher = start(
        HERE, launch.folder, "--ssh", sshds.command, "--hosts", "127.0.0.2:1,127.0.0.3:1", str(script)
    )
    assert launcher.stdout is not None
    pids = [int(re.findall(r"pid (\d+)", launcher.stdout.readline())[0]) for _ in range(2)]
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "the end of the ranks")


def test_threads_of_a_launch_end_with_it(launch: Launcher) -> None:
    before = threading.active_count()
    assert launch("print('x')", "--nproc", "2").code == 0
    assert threading.active_count() == before
