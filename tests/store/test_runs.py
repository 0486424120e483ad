"""Run folders: a new one each time, the last one found again."""

from __future__ import annotations

import os
import threading

import pytest

from manyhands.errors import StorageError
from manyhands.store.runs import latest_run, new_run, runs


def test_names_count_up_and_are_never_used_twice(tmp_path):
    folder = tmp_path / "deep" / "checkpoints"
    assert runs(folder) == []
    assert latest_run(folder) is None
    assert [new_run(folder) for _ in range(3)] == ["run-0001", "run-0002", "run-0003"]
    (folder / "run-0002").rmdir()
    assert new_run(folder) == "run-0004"


def test_two_that_ask_at_once_get_two(tmp_path):
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(new_run(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 8


def test_the_one_last_written_to_is_the_latest(tmp_path):
    for name, written in (("run-0001", 300), ("run-0002", 100), ("mine", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "latest").write_text("step-1\n")
        os.utime(tmp_path / name / "latest", (written, written))
    (tmp_path / "not a run").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    assert runs(tmp_path) == ["run-0002", "mine", "run-0001"]
    assert latest_run(tmp_path) == "run-0001"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(StorageError, match="checkpoints"):
        new_run(tmp_path / "checkpoints")
