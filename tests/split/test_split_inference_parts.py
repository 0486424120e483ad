"""Results on disk: after a kill at any moment no row is repeated or missing, and memory stays flat."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manyhands.clock import ManualClock, SystemClock
from manyhands.errors import StorageError, UsageError
from manyhands.split.inference.parts import OnDisk

CONFIG = {"top_k": 1, "batch_size": 10}


def opened(folder: Path, clock=None, **config) -> OnDisk:
    sink = OnDisk(folder, {**CONFIG, **config}, clock or ManualClock())
    sink.open()
    return sink


def batch(sequence: int, rows: int = 10) -> dict[str, np.ndarray]:
    indices = np.arange(sequence * 10, sequence * 10 + rows)
    return {"indices": indices, "probabilities": np.repeat(indices[:, None], 3, 1).astype(np.float32)}


def test_a_finished_result_is_files_of_numpy_and_is_not_computed_again(tmp_path):
    sink = opened(tmp_path / "out")
    for sequence in range(5):
        sink.add(10, batch(sequence, 10 - sequence))
    result = sink.finish()
    assert (result["total_samples"], result["total_batches"], result["kept_samples"]) == (50, 5, 40)
    assert np.load(tmp_path / "out" / "probabilities.npy").shape == (40, 3)
    assert np.array_equal(result["indices"], np.load(tmp_path / "out" / "indices.npy"))
    assert isinstance(result["indices"], np.memmap)
    again = opened(tmp_path / "out")
    assert (again.is_finished, again.next_sequence) == (True, 5)
    assert np.array_equal(again.finish()["indices"], result["indices"])


def test_a_result_of_no_rows_is_empty_arrays(tmp_path):
    sink = opened(tmp_path)
    sink.add(10, batch(0, 0))
    result = sink.finish()
    assert result["probabilities"].shape == (0, 3)
    assert (result["kept_samples"], result["total_samples"]) == (0, 10)


def test_what_lies_behind_the_watermark_is_cut_off(tmp_path):
    clock = ManualClock()
    sink = opened(tmp_path, clock)
    sink.add(10, batch(0))
    clock.sleep(3.0)
    sink.add(10, batch(1))  # commits
    sink.add(10, batch(2))
    sink.close()  # as a kill would, but that these rows are in the file
    assert (tmp_path / "indices.npy").stat().st_size > 128 + 20 * 8
    sink = opened(tmp_path, clock)
    assert sink.next_sequence == 2
    for sequence in (2, 3):
        sink.add(10, batch(sequence))
    assert sink.finish()["indices"].tolist() == list(range(40))


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from manyhands.clock import SystemClock
from manyhands.split.inference import parts
parts.COMMIT_SECONDS = 0.0005
sink = parts.OnDisk(Path(sys.argv[1]), {"top_k": 1, "batch_size": 10}, SystemClock())
sink.open()
print("open", flush=True)
for sequence in range(sink.next_sequence, 1500):
    indices = np.arange(sequence * 10, sequence * 10 + 10)
    sink.add(10, {"indices": indices, "probabilities": np.repeat(indices[:, None], 3, 1).astype(np.float32)})
    if sequence % 20 == 0:
        print(sequence, flush=True)
sink.finish()
"""


def test_killed_at_any_moment_no_row_is_repeated_or_missing(tmp_path):
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        for _ in range(int(rng.integers(2, 20))):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        kills += 1
        if kills == 3:
            subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], check=True, stdout=subprocess.DEVNULL)
            break
    assert kills
    result = opened(tmp_path).finish()
    assert np.array_equal(result["indices"], np.arange(15_000))
    assert np.array_equal(result["probabilities"][:, 2], np.arange(15_000, dtype=np.float32))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "indices.npy").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"indices\.npy, which is no result of ours"):
        opened(tmp_path)
    assert (tmp_path / "indices.npy").read_bytes() == b"mine"


def test_another_job_another_process_and_damage_are_named(tmp_path):
    sink = opened(tmp_path)
    with pytest.raises(UsageError, match="another process writes there now"):
        opened(tmp_path)
    sink.add(10, batch(0))
    sink.finish()
    with pytest.raises(UsageError, match="top_k=1, and this run has 5"):
        opened(tmp_path, top_k=5)
    with (tmp_path / "indices.npy").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(StorageError, match="it is damaged"):
        opened(tmp_path)
    (tmp_path / "watermark.json").write_text("{")
    with pytest.raises(StorageError, match="cannot be read"):
        opened(tmp_path)


def test_a_full_disk_is_named_and_nothing_committed_is_lost(tmp_path):
    """A limit on the size of files gives what a full disk gives: a write that fails half way."""
    program = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_split_inference_parts import batch, opened
from manyhands.errors import StorageError
sink = opened(__import__("pathlib").Path({str(tmp_path)!r}))
for sequence in range(100):
    sink.add(10, batch(sequence)); sink.commit()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "StorageError: could not write rows to" in done.stderr, done.stderr
    assert "ulimit -f" in done.stderr
    mark = json.loads((tmp_path / "watermark.json").read_text())
    assert mark["next_sequence"] > 40
    sink = opened(tmp_path)
    for sequence in range(sink.next_sequence, 300):
        sink.add(10, batch(sequence))
    assert sink.finish()["indices"].tolist() == list(range(3000))


@pytest.mark.slow
def test_a_million_rows_take_no_memory(tmp_path):
    sink = opened(tmp_path, SystemClock(), batch_size=1000)
    marks = []
    for sequence in range(1000):
        indices = np.arange(sequence * 1000, sequence * 1000 + 1000)
        sink.add(1000, {"indices": indices, "probabilities": np.ones((1000, 100), np.float32)})
        if sequence % 100 == 99:
            marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert sink.finish()["kept_samples"] == 1_000_000
    assert marks[-1] <= 1.1 * marks[0]
    assert (tmp_path / "probabilities.npy").stat().st_size == 128 + 400_000_000
