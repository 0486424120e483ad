"""A disk that fills up under ``output=``: said with what to do, and nothing of what was computed is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from split_trainers import serving, up
from split_training_parts import digits, model

from manyhands.errors import StorageError
from manyhands.split.loader import CPULoader
from manyhands.split.trainer import GPUTrainer

ROWS = 40_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_loses_nothing_and_the_same_call_goes_on(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "60")
    net, data = model(), digits(ROWS)
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(net)
    with serving(trainer, lambda t: t.start_service("inference")) as outcome:
        host, port = up(trainer, outcome)
        loader = CPULoader(num_workers=0)
        loader.setup_dataset(data, batch_size=500, shuffle=False)

        def infer():
            return loader.run_inference(
                host, gpu_port=port, return_raw_outputs=True, output=small_disk / "out"
            )

        with pytest.raises(StorageError, match=r"the disk is full.*free some space.*the same call goes on"):
            infer()
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        result = infer()
        assert result["indices"].tolist() == list(range(ROWS))
        net.eval()
        with torch.no_grad():
            expected = net(data.tensors[0]).numpy()
        assert np.allclose(result["raw_outputs"], expected, atol=1e-6)
        trainer.stop()
    del result  # it is looked at where it lies
