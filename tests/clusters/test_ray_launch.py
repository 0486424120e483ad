"""``manyhands launch --on ray``: one script on the machines of a real Ray cluster, and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_machines import ray_machines

from manyhands.clusters.plan import Machine
from manyhands.clusters.raylaunch import chosen, names_of, rewritten, without
from manyhands.errors import UsageError

SUM = """
import os
import sys

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {total.item():g} {sys.argv[1:]}", flush=True)
dist.destroy_process_group()
"""
FAILS = """
import os
import sys

if os.environ["RANK"] == "1":
    raise SystemExit(7)
"""


def launch(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
    return subprocess.run(
        [sys.executable, "-m", "manyhands", "launch", *arguments, str(script), "--on", "its own"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env={**kept, "MANYHANDS_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_script_runs_on_every_machine_of_the_cluster(tmp_path):
    with ray_machines(2, 2) as machines:
        place = ("--on", "ray", "--address", machines.address, "--nproc", "2")
        done = launch(tmp_path, SUM, *place)
        assert done.returncode == 0, done.stderr
        for rank in range(4):
            assert f"rank {rank} of 4: 10 ['--on', 'its own']" in done.stdout, done.stdout + done.stderr
        failed = launch(tmp_path, FAILS, *place)
        assert failed.returncode == 7, failed.stderr


def test_a_script_may_have_options_of_the_same_name():
    words = ["--nproc", "2", "train.py", "--on", "ray"]
    assert rewritten(words) == words


def test_hosts_are_the_clusters():
    with pytest.raises(UsageError, match="leave out --hosts"):
        rewritten(["--on", "ray", "--hosts", "a,b", "train.py"])


def test_only_our_own_options_are_taken_out():
    words = ["--on", "ray", "--nproc", "2", "--count=3", "--address", "a:1", "-m"]
    assert without(words, ["--on", "--count", "--address"]) == ["--nproc", "2", "-m"]


def test_machines_go_by_their_address_where_that_tells_them_apart():
    own, one, other, six = (
        Machine(name, address, 2)
        for name, address in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.2"), ("d", "fd00::2")]
    )
    assert names_of([own, one, other, six]) == ["10.0.0.1", "ray-2", "ray-3", "ray-4"]


def test_the_machines_with_most_are_taken_first():
    small, large, empty = Machine("s", "a", 2), Machine("l", "b", 8), Machine("e", "c", 0)
    assert chosen([small, large, empty], None) == [large, small]
    assert chosen([small, large, empty], 1) == [large]
    with pytest.raises(UsageError, match="--count 3: the cluster has 2 machines"):
        chosen([small, large, empty], 3)
