"""Disks that fill up and checkpoints that are torn: what was whole stays, the path is named, the run goes on later."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_jobs
import pytest
from pool_nodes import Pool

from manyhands.errors import StorageError
from manyhands.pool.server import CentralServer
from manyhands.store.ledger import Ledger
from manyhands.training.reference import reference

JOB = "linear"
DISK_BYTES = 4 << 20


def start(folder: Path, **more: Any) -> CentralServer:
    pool_jobs.GATE.set()
    model, dataset, options = pool_jobs.build(JOB)
    server = CentralServer(
        model, dataset, ip="localhost", port=0, checkpoint_dir=folder, **{**options, **more}
    )
    server.start(block=False)
    return server


def alone() -> str:
    model, dataset, options = pool_jobs.build(JOB)
    return reference(model, dataset, **options).weights_sha256


def finish(folder: Path, pool: Pool) -> None:
    """Resume; the end is that of a run that nothing happened to."""
    server = start(folder, resume=True)
    (worker,) = pool.take(1)
    worker.tell(job=JOB, port=server.address[1])
    report = server.wait()
    assert "error" not in worker.hear()
    assert report.weights_sha256 == alone()
    assert report.samples_applied == report.samples_expected == 96
    with Ledger(folder / "run-0001" / "journal.sqlite") as ledger:
        assert ledger.audit() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here; the file size limit below says the same")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_the_run_and_loses_nothing(pool: Pool, small_disk: Path) -> None:
    filler = small_disk / "somebody-elses"

    def on_step(*, step: int, **_: Any) -> None:
        if step == 2:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    server = start(small_disk, on_step=on_step)
    (worker,) = pool.take(1)
    worker.tell(job=JOB, port=server.address[1])
    with pytest.raises(StorageError, match=r"disk is full|No space left") as caught:
        server.wait()
    assert caught.value.path.startswith(str(small_disk / "run-0001"))
    assert caught.value.exit_code == 5
    told = worker.hear()
    assert (told["error"], told["code"]) == ("RunFailed", 5)
    assert (small_disk / "run-0001" / "latest").read_text() == "step-0\n"
    filler.unlink()
    finish(small_disk, pool)


def test_a_file_size_limit_ends_the_run_and_loses_nothing(pool: Pool, tmp_path: Path) -> None:
    # Needs no right to mount, so that the promise is tested everywhere.
    folder = tmp_path / "checkpoints"
    program = """
        import resource, sys, threading, torch
        sys.path.insert(0, sys.argv[1])
        import pool_jobs
        from manyhands.errors import StorageError
        from manyhands.pool.node import TrainingNode
        from manyhands.pool.server import CentralServer

        torch.set_num_threads(1)
        pool_jobs.GATE.set()
        model, dataset, options = pool_jobs.build("linear")

        def on_step(*, step, **_):
            if step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (256, resource.RLIM_INFINITY))

        server = CentralServer(model, dataset, ip="localhost", port=0, checkpoint_dir=sys.argv[2],
                               on_step=on_step, **options)
        server.start(block=False)
        node = TrainingNode(pool_jobs.build("linear")[0], server.address)

        def train():
            try:
                node.train()
            except Exception as error:
                print("node:", type(error).__name__)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            server.wait()
        except StorageError as error:
            print("server:", error.exit_code, error.path)
        thread.join()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(Path(__file__).parent), str(folder)],
        env={**os.environ, "MANYHANDS_STATE_DIR": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "node: RunFailed" in done.stdout, done.stderr
    assert f"server: 5 {folder / 'run-0001'}" in done.stdout, done.stderr
    assert (folder / "run-0001" / "latest").read_text() == "step-0\n"
    finish(folder, pool)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
def test_of_torn_checkpoints_the_newest_whole_one_is_used_and_said(
    pool: Pool, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Any
) -> None:
    made = start(
        tmp_path,
        checkpoint_interval=1e-9,
        on_step=lambda **told: made.stop() if told["step"] == 3 else None,
    )
    (worker,) = pool.take(1)
    worker.tell(job=JOB, port=made.address[1])
    steps = made.wait().steps
    worker.hear()
    run = tmp_path / "run-0001"
    damage(run / f"step-{steps}" / "model.safetensors")
    capfd.readouterr()
    finish(tmp_path, pool)
    said = capfd.readouterr().err
    assert f"skipped {run / f'step-{steps}'}" in said
    assert "model.safetensors" in said


def test_without_a_whole_checkpoint_nothing_is_started_over(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path)
    server.stop()
    server.wait()
    for model in tmp_path.glob("run-0001/step-*/model.safetensors"):
        truncated(model)
    for resume in (True, "auto"):
        with pytest.raises(StorageError, match=r"no checkpoint in .* is whole") as caught:
            start(tmp_path, resume=resume)
        assert caught.value.path == str(tmp_path)
