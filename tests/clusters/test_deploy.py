"""What a cluster runs: manifests against the schema of Kubernetes, the image's sources, and the Slurm script's life."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from manyhands.testing.process import wait_for

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SBATCH = ROOT / "deploy" / "slurm" / "manyhands.sbatch"
SRUN = """#!/bin/bash
# Runs its command SLURM_NTASKS times at once, as srun does on several machines; signals go to all of them.
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task "$@" &
    tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
code=0
for task in "${tasks[@]}"; do wait "$task" || wait "$task" || code=$?; done
exit "$code"
"""


def documents() -> list[dict]:
    files = sorted(KUBERNETES.glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def test_manifests_are_what_kubernetes_takes():
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--no-warn"]
    checked = subprocess.run(
        [*command, *map(str, sorted(KUBERNETES.glob("*.yaml")))], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_invite_is_a_secret_and_pods_have_no_rights():
    pods = {
        d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in documents() if "template" in d["spec"]
    }
    assert set(pods) == {"manyhands-coordinator", "manyhands-nodes"}
    for pod in pods.values():
        container = pod["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("mh://" in str(value) for value in (container["args"], container["env"]))
    node = pods["manyhands-nodes"]
    assert {"name": "invite", "secret": {"secretName": "manyhands-invite", "defaultMode": 0o440}} in node[
        "volumes"
    ]
    assert "@/invite/line" in node["containers"][0]["args"]


def test_a_selector_finds_its_own_pods():
    for document in documents():
        if "template" in document["spec"]:
            assert (
                document["spec"]["selector"]["matchLabels"]
                == document["spec"]["template"]["metadata"]["labels"]
            )


def test_the_image_copies_what_there_is():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert sources
    assert not [name for name in sources if not (ROOT / name).exists()]


@contextmanager
def slurm(folder: Path, tasks: int, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script in a job of `tasks` tasks, with an srun that runs them here."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MANYHANDS_", "SLURM_"))
    }
    own = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": str(tasks),
        "TMPDIR": str(folder),
        "MANYHANDS_STATE_DIR": str(folder / "state"),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "said").open("wb") as said:
        job = subprocess.Popen(
            ["bash", str(SBATCH)],
            cwd=folder,
            env={**kept, **own, **more},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def target(folder: Path, name: str) -> str:
    """A server in a file of its own, as a user has one."""
    file = folder / "server.py"
    jobs = ROOT / "tests" / "testing"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(jobs)!r})\nfrom jobs import build\n\n\n"
        "def short():\n    return build()\n\n\ndef endless():\n    return build(epochs=1_000_000)\n"
    )
    return f"{file}:{name}"


def test_the_slurm_script_says_what_it_needs(tmp_path):
    with slurm(tmp_path, 1) as job:
        assert job.wait(30) == 2
        assert "INVITE_FILE" in said(tmp_path)


@pytest.mark.slow
def test_a_slurm_job_trains_with_its_own_coordinator(tmp_path):
    with slurm(tmp_path, 2, SERVER=target(tmp_path, "short"), ADVERTISE="127.0.0.1") as job:
        assert job.wait(110) == 0, said(tmp_path)
        assert said(tmp_path).count("the run is over") == 2
        assert list((tmp_path / "checkpoints").glob("*/step-24/model.safetensors")), said(tmp_path)
        assert not list(tmp_path.glob(".manyhands-invite-*"))
        assert not list(tmp_path.glob("manyhands-17-*"))


@pytest.mark.slow
def test_a_slurm_job_that_is_out_of_time_saves_and_leaves_nothing(tmp_path):
    with slurm(tmp_path, 2, SERVER=target(tmp_path, "endless"), ADVERTISE="127.0.0.1") as job:
        wait_for(lambda: said(tmp_path).count("joined run") == 2, 100.0, "two nodes")
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143, said(tmp_path)
        assert list((tmp_path / "checkpoints").glob("*/step-*/manifest.json")), said(tmp_path)
        assert not list(tmp_path.glob(".manyhands-invite-*"))
        assert not list(tmp_path.glob("manyhands-17-*"))
