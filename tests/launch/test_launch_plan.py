"""Command lines: torchrun's options with either dash, ours beside them, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from manyhands.errors import UsageError
from manyhands.launch.options import parse, parser
from manyhands.launch.plan import Host, join_line, parse_hostfile, parse_hosts, parse_nodes, processes
from manyhands.launch.starting import launch_line


def test_every_option_of_torchrun_is_taken_with_either_dash() -> None:
    ours = {option for action in parser()._actions for option in action.option_strings}
    theirs = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert theirs <= ours
    for option in ours:
        if option.startswith("--"):
            assert "--" + option[2:].replace("-", "_") in ours


def test_the_help_lists_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    for option in ("--nproc", "--hosts", "--on", "--count", "--address", "--max-restarts"):
        assert f"\n  {option} " in shown or f"\n  {option}," in shown


def test_the_script_and_all_that_follows_is_the_scripts() -> None:
    order = parse(["--nproc", "3", "--max_restarts=2", "train.py", "--nproc", "9", "-m"])
    assert order.nproc == "3"
    assert order.torchrun.max_restarts == 2
    assert order.script == "train.py"
    assert order.script_arguments == ["--nproc", "9", "-m"]


def test_torchruns_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(["train.py"]).nproc is None
    monkeypatch.setenv("PET_NPROC_PER_NODE", "1")
    monkeypatch.setenv("PET_MASTER_ADDR", "10.0.0.1")
    order = parse(["train.py"])
    assert order.nproc == "1"
    assert order.torchrun.master_addr == "10.0.0.1"


@pytest.mark.parametrize(
    ("asked", "accelerators", "expected"),
    [(None, 0, 4), (None, 2, 2), ("auto", 0, 16), ("auto", 2, 2), ("cpu", 2, 16), ("gpu", 8, 8), ("3", 8, 3)],
)
def test_how_many_processes(asked: str | None, accelerators: int, expected: int) -> None:
    assert processes(asked, accelerators, cores=16) == expected


def test_hosts_by_list_and_by_file() -> None:
    assert parse_hosts("a,user@b:4,[fd00::2]:2") == (Host("a"), Host("user@b", 4), Host("[fd00::2]", 2))
    assert parse_hosts("[fd00::2]")[0].ssh_name == "fd00::2"
    text = "# the cluster\na\nb slots=2   # two\n\nc:3\n"
    assert parse_hostfile(text, "hosts.txt") == (Host("a"), Host("b", 2), Host("c", 3))


def test_the_join_line_can_be_pasted() -> None:
    line = join_line("2", 1, "fd00::1", 29500, ["my script.py", "--lr", "0.1"])
    assert line == (
        "manyhands launch --nnodes 2 --node-rank 1 --master-addr [fd00::1] --master-port 29500 'my script.py' --lr 0.1"
    )
    assert parse(["--nnodes", "2", "--master-addr", "[fd00::1]", "x.py"]).torchrun.master_addr == "[fd00::1]"


def test_a_script_that_launches_itself_keeps_its_own_options() -> None:
    words = [
        "--node_rank",
        "1",
        "--epochs",
        "3",
        "--nnodes=2",
        "--master_addr",
        "a",
        "--resume",
        "--master_port",
        "29500",
    ]
    line = launch_line("/train.py", words)
    order = parse(line)
    assert order.script_arguments == ["--epochs", "3", "--resume"]
    assert (order.most_nodes, order.torchrun.node_rank, order.torchrun.master_port) == (2, 1, 29500)
    assert launch_line("/train.py", ["-m", "x"]) == ["/train.py", "-m", "x"]
    assert launch_line("/train.py", ["--count", "3"]) == ["/train.py", "--count", "3"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no script is named"),
        (["--nproc"], "--nproc"),
        (["--nnodes", "0", "x.py"], "--nnodes 0"),
        (["--nnodes", "3:2", "x.py"], "--nnodes 3:2"),
        (["--nnodes", "2", "--node-rank", "2", "x.py"], "numbered 0 to 1"),
        (["--master-port", "70000", "x.py"], "--master-port 70000"),
        (["--max-restarts", "-1", "x.py"], "--max-restarts -1"),
        (["--hosts", "a,a", "x.py"], "a is named twice"),
        (["--hosts=-oProxyCommand=x", "x.py"], "is not a host"),
        (["--hosts", "", "--hostfile", "/nowhere", "x.py"], "/nowhere cannot be read"),
        (["--hosts", "a", "--nnodes", "2", "x.py"], "leave out --nnodes"),
        (["--hosts", "a:0", "x.py"], "'a:0' is not a host"),
        (["--count", "2", "x.py"], "--on ray"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert part in str(caught.value)


def test_a_line_of_a_hostfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"hosts line 2: 'gpus=3' is not slots=N"):
        parse_hostfile("a\nb gpus=3\n", "hosts")


def test_processes_that_cannot_be_are_refused() -> None:
    for asked in ("0", "-1", "many", "gpu"):
        with pytest.raises(UsageError, match=f"--nproc {asked}"):
            processes(asked, 0, 4)
    with pytest.raises(UsageError):
        parse_nodes("two")
