"""Metric files: whole lines, late columns, and a resumed run goes on in them."""

from __future__ import annotations

import csv
import importlib.util
import json

import pytest

from manyhands.errors import StorageError, UsageError
from manyhands.observe.metrics import open_log


def test_jsonl_is_one_object_a_line_and_goes_on(tmp_path):
    path = tmp_path / "deep" / "m.jsonl"
    log = open_log(f"jsonl:{path}")
    log.write(1, {"loss": 0.1 + 0.2})
    log.write(2, {"loss": float("nan"), "lr": float("inf")})
    log.close()
    log.close()
    log = open_log(f"jsonl:{path}")
    log.write(3, {"val": 1.0})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "loss": None, "lr": None},
        {"step": 3, "val": 1.0},
    ]


def test_csv_takes_late_columns_and_goes_on(tmp_path):
    path = tmp_path / "m.csv"
    log = open_log(f"csv:{path}")
    log.write(1, {"loss": 0.5})
    log.write(2, {"val, accuracy": 0.9, "loss": 0.25})
    log.close()
    log = open_log(f"csv:{path}")
    log.write(3, {"lr": 0.1})
    log.write(4, {"loss": 0.125})
    log.close()
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["step", "loss", "val, accuracy", "lr"],
        ["1", "0.5", "", ""],
        ["2", "0.25", "0.9", ""],
        ["3", "", "", "0.1"],
        ["4", "0.125", "", ""],
    ]
    assert [child.name for child in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_torn_last_line_is_dropped(tmp_path, kind):
    """A killed writer leaves half a line; the next row must not be glued to it."""
    path = tmp_path / "m"
    log = open_log(f"{kind}:{path}")
    log.write(1, {"loss": 0.5})
    log.close()
    whole = path.read_text()
    path.write_text(whole + '{"st' if kind == "jsonl" else whole + "2,0.")
    log = open_log(f"{kind}:{path}")
    log.write(2, {"loss": 0.25})
    log.close()
    assert path.read_text().startswith(whole)
    assert len(path.read_text().splitlines()) == len(whole.splitlines()) + 1


def test_none_keeps_nothing(tmp_path):
    log = open_log(None)
    log.write(1, {"loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", ["", "csv", "csv:", "wandb:x", "m.csv", "TENSORBOARD:x", ":x"])
def test_another_form_is_refused_with_the_forms(spec):
    with pytest.raises(UsageError, match='"tensorboard:DIR", "csv:FILE", "jsonl:FILE" or None'):
        open_log(spec)


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"metrics to .*file/m.csv"):
        open_log(f"csv:{tmp_path}/file/m.csv")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_without_tensorboard_the_extra_is_named(tmp_path):
    with pytest.raises(UsageError, match=r'pip install "manyhands\[metrics\]"'):
        open_log(f"tensorboard:{tmp_path}")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_event_files(tmp_path):
    log = open_log(f"tensorboard:{tmp_path}/events")
    log.write(1, {"loss": 0.5})
    log.close()
    (file,) = (tmp_path / "events").iterdir()
    assert file.stat().st_size > 0
