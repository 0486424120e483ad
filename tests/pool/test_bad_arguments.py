"""Sizes, types and functions that cannot be: each is refused by its name and value before a socket is opened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.errors import Refused, StorageError, UsageError
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer

DATA = TensorDataset(torch.randn(40, 4), torch.randint(0, 2, (40,)))
EMPTY = TensorDataset(torch.zeros(0, 4), torch.zeros(0))


def start(folder: Path, **options: Any) -> None:
    given = {
        "model": nn.Linear(4, 2),
        "dataset": DATA,
        "ip": "localhost",
        "port": 0,
        "checkpoint_dir": folder,
    }
    CentralServer(**{**given, **options}).start(block=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": -16}, "batch_size=-16 must be"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be"),
        ({"batch_size": True}, "batch_size=True must be"),
        ({"batch_size": "16"}, "batch_size='16' must be"),
        ({"micro_batches": 0}, "micro_batches=0 must be"),
        ({"micro_batches": 17}, "micro_batches=17 is more than batch_size=16"),
        ({"epochs": 0}, "epochs=0 must be"),
        ({"epochs": 1.5}, "epochs=1.5 must be"),
        ({"max_steps": 0}, "max_steps=0 must be"),
        ({"max_steps": 2.5}, "max_steps=2.5 must be"),
        ({"batch_size": 64, "drop_last": True}, "40 samples do not fill one batch of 64"),
        ({"queue_size": 0}, "queue_size=0 must be"),
        ({"num_workers": -1}, "num_workers=-1 must be"),
        ({"seed": 1 << 70}, "seed=1180591620717411303424 must be a whole number from -9223372036854775808"),
        ({"seed": "zero"}, "seed='zero' must be"),
        ({"port": 70000}, "port=70000 must be a whole number from 0 to 65535"),
        ({"port": -1}, "port=-1 must be"),
        ({"port": "5555"}, "port='5555' must be"),
        ({"ip": "no.such.host.invalid"}, "no.such.host.invalid' has no address"),
        ({"ip": "192.0.2.1"}, "cannot listen on 192.0.2.1:0, .*the address is not this machine's"),
        ({"advertise": "host:99999"}, "'99999' is not a number between 1 and 65535"),
        ({"clip_norm": math.nan}, "clip_norm=nan must be a number greater than 0"),
        ({"checkpoint_interval": math.nan}, "checkpoint_interval=nan must be a number greater than 0"),
        ({"checkpoint_interval": "5"}, "checkpoint_interval='5' must be"),
        ({"verify": "all"}, "verify='all' must be a number from 0 to 1"),
        ({"val_dataset": DATA, "val_every": 2.5}, "val_every=2.5 must be"),
        ({"val_dataset": EMPTY}, r"val_dataset is empty \(len 0\)"),
        ({"val_dataset": iter(())}, "has no __getitem__ and __len__"),
        ({"val_dataset": DATA, "early_stopping": 5}, "early_stopping=5 must be a dict"),
        ({"val_dataset": DATA, "early_stopping": {"patience": 0}}, "patience=0 must be"),
        ({"val_dataset": DATA, "early_stopping": {"patience": "long"}}, "patience='long' must be"),
        ({"val_dataset": DATA, "early_stopping": {"min_delta": -1}}, "min_delta=-1 must be a number from 0"),
        ({"dataset": []}, r"the dataset is empty \(len 0\)"),
        ({"dataset": iter(())}, "has no __getitem__ and __len__"),
        ({"on_step": 3}, "on_step=3 cannot be called"),
        ({"on_epoch": 3}, "on_epoch=3 cannot be called"),
        ({"criterion": 3}, "criterion=3 cannot be called"),
        ({"optimizer": 3}, "optimizer=3 cannot be called"),
        ({"scheduler": 3}, "scheduler=3 cannot be called"),
        ({"weight": 3}, "weight=3 cannot be called"),
        ({"collate_fn": 3}, "collate_fn=3 cannot be called"),
        ({"resume": "yes"}, "resume='yes' must be True, False or \"auto\""),
    ],
)
def test_it_is_refused_by_name_and_value(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        start(tmp_path, **options)
    assert caught.value.exit_code == 2


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "checkpoints"
    taken.write_text("not a folder")
    with pytest.raises(StorageError, match="File exists") as caught:
        start(taken)
    assert caught.value.path == str(taken)
    assert taken.read_text() == "not a folder"


@pytest.mark.parametrize(
    ("invite", "says"),
    [
        ("@/no/such/file", "the invite file /no/such/file cannot be read: No such file or directory"),
        ("mh://short@host:1", "the invite's token has 5 characters of 48"),
        ("paste this", "an invite starts with mh://"),
    ],
)
def test_an_invite_that_is_none_is_the_callers_to_change(invite: str, says: str) -> None:
    for node in (
        TrainingNode(nn.Linear(4, 2), invite=invite),
        TrainingNode(nn.Linear(4, 2), "@/no/such/file"),
    ):
        with pytest.raises(UsageError) as caught:
            node.train()
        assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=says):
        TrainingNode(nn.Linear(4, 2), invite=invite).connect()


def test_no_invite_at_all_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path))
    with pytest.raises(Refused, match="no invite: none was given, MANYHANDS_INVITE is not set"):
        TrainingNode(nn.Linear(4, 2), "localhost:9").connect()
