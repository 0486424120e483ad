"""What cannot be trained says so before anything starts, and names what to change."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.errors import BadSample, UsageError
from manyhands.pool.data import Source
from manyhands.pool.job import prepare
from manyhands.pool.node import TrainingNode
from manyhands.pool.options import PoolOptions, check_options
from manyhands.pool.server import CentralServer
from manyhands.pool.tally import Tally
from manyhands.pool.validation import validate
from manyhands.training.objective import Objective
from manyhands.training.stopping import EarlyStopping, early_stopping

DATA = TensorDataset(torch.randn(40, 4), torch.randint(0, 2, (40,)))


def server(folder: Path, **options: Any) -> CentralServer:
    given = {"model": nn.Linear(4, 2), "dataset": DATA, "ip": "localhost", "port": 0, **options}
    return CentralServer(checkpoint_dir=folder, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": TensorDataset(torch.zeros(0, 4), torch.zeros(0))}, r"the dataset is empty \(len 0\)"),
        (
            {"ip": "0.0.0.0", "secure": False},
            "ip='0.0.0.0' with secure=False would send weights and data in plain text",
        ),
        (
            {"model": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "batch_size": 4},
            "would hold 1 sample",
        ),
        (
            {"model": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "batch_size": 13},
            "last batch of an epoch would hold 1 of 40 samples.*drop_last=True",
        ),
        ({"model": nn.Linear(4, 2).requires_grad_(False)}, "nothing to train"),
        ({"model": lambda x: x}, "model must be a torch.nn.Module, not function"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"aggregation": "async"}, "aggregation='async'"),
        ({"compression": "int4"}, "compression='int4' is not one of None, 'int8'"),
        ({"verify": 1.5}, "verify=1.5"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"checkpoint_interval": 0}, "checkpoint_interval=0"),
        ({"val_every": 0}, "val_every=0"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample='ignore'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore'"),
        ({"data": "local", "collate_fn": list}, "collate_fn does not reach nodes"),
        ({"early_stopping": {"patience": 3}}, "early_stopping needs val_dataset"),
        ({"early_stopping": {"patients": 3}}, "early_stopping has no 'patients'"),
        ({"early_stopping": {"monitor": "loss"}}, "val_loss or val_accuracy, not 'loss'"),
        ({"resume": True}, "holds no checkpoint"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
        ({"log": "papyrus:x"}, "papyrus"),
    ],
)
def test_it_is_refused_before_anything_listens(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    made = server(tmp_path, **options)
    with pytest.raises(UsageError, match=message):
        made.start(block=False)


def test_a_port_in_use_names_the_process(tmp_path: Path) -> None:
    message = r"cannot listen on .*(holds it|another process)"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match=message):
        server(tmp_path, port=taken.getsockname()[1]).start(block=False)


class Torn(TensorDataset):
    bad = (0,)

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise OSError("torn")
        return super().__getitem__(index)


def test_a_bad_first_sample_stops_or_is_passed_over() -> None:
    # The probe at start loads the first leaf: quarantine did not reach it.
    data = Torn(*DATA.tensors)
    with pytest.raises(BadSample) as caught:
        prepare(nn.Linear(4, 2), data, None, None, None, PoolOptions(shuffle=False))
    assert caught.value.index == 0
    job = prepare(
        nn.Linear(4, 2), data, None, None, None, PoolOptions(shuffle=False, on_bad_sample="quarantine")
    )
    assert job.probe[0].indices == (1, 2, 3, 4)
    assert job.feeder.load(0).quarantined == {0: "torn"}

    class AllTorn(Torn):
        bad = range(40)

    with pytest.raises(BadSample):
        prepare(
            nn.Linear(4, 2), AllTorn(*DATA.tensors), None, None, None, PoolOptions(on_bad_sample="quarantine")
        )


def test_preparing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    prepare(model, DATA, None, None, None, PoolOptions())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_calls_out_of_order_say_what_comes_first(tmp_path: Path) -> None:
    made = server(tmp_path)
    for read in (lambda: made.invite, lambda: made.address, made.wait):
        with pytest.raises(UsageError, match=r"start\(\)"):
            read()
    assert made.status()["state"] == "new"
    node = TrainingNode(nn.Linear(4, 2))
    for call in (node.get_batch, lambda: node.send_gradients([], 0)):
        with pytest.raises(UsageError, match=r"call connect\(\) first"):
            call()
    node.close()
    with pytest.raises(UsageError, match="a loop of your own computes with its own model"):
        TrainingNode().connect()


def test_a_server_starts_once(tmp_path: Path) -> None:
    made = server(tmp_path)
    made.start(block=False)
    with pytest.raises(UsageError, match="started before"):
        made.start()
    made.stop()
    assert made.wait().steps == 0, "stopped while it waited for a first node"
    assert made.status()["state"] == "stopped"
    made.stop()


def test_a_run_resumed_as_another_is_refused(tmp_path: Path) -> None:
    made = server(tmp_path)
    made.start(block=False)
    made.stop()
    made.wait()
    for options, message in [
        ({"batch_size": 8}, "saved with batch_size=16 and is resumed with 8"),
        ({"seed": 3}, "saved with seed=0"),
        ({"optimizer": torch.optim.AdamW}, "saved with optimizer Adam and is resumed with AdamW"),
        ({"model": nn.Linear(4, 3)}, "checkpoint is of another model: weight is"),
        (
            {"model": nn.Sequential(nn.Linear(4, 2))},
            "checkpoint is of another model: 0.bias is only in the model",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            server(tmp_path, resume=True, **options).start(block=False)
    again = server(tmp_path, resume="auto", epochs=5)
    again.start(block=False)
    again.stop()
    assert again.wait().samples_expected == 200


# ---- validation and tallies ----


def test_validation_weighs_as_training_does_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    small = validate(model, Objective(), Source(DATA, None, 0), 7)
    whole = validate(model, Objective(), Source(DATA, None, 0), 64)
    assert small.loss == pytest.approx(whole.loss, rel=1e-5)
    assert small.accuracy == whole.accuracy
    assert small.samples == 40
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    regression = TensorDataset(DATA.tensors[0], torch.randn(40, 2))
    assert validate(model, Objective(nn.MSELoss()), Source(regression, None, 0), 64).accuracy is None


def test_stopping_early_waits_for_its_patience_and_restores_the_best() -> None:
    model = nn.Linear(1, 1)
    rule = EarlyStopping(**(early_stopping({"patience": 2, "min_delta": 0.1}) or {}))
    best = None
    for step, loss in enumerate([1.0, 0.5, 0.45, 0.44]):
        with torch.no_grad():
            model.weight.fill_(step)
        assert rule.update(loss, None, model) == (step == 3)
        best = 1 if step == 1 else best
    rule.restore(model)
    assert float(model.weight.detach()) == best
    upward = EarlyStopping(monitor="val_accuracy", patience=1)
    assert [upward.update(0.0, a, model) for a in (0.5, 0.7, 0.7)] == [False, False, True]


def test_a_tally_survives_its_manifest() -> None:
    tally = Tally(samples_applied=7, nodes_seen={"a", "b"}, final_loss=0.5)
    tally.credit("cpu", 4)
    tally.credit("cpu", 3)
    assert Tally.from_plain(tally.to_plain()) == tally
    assert tally.numeric_classes == {"cpu": 7}


def test_options_default_to_what_the_docs_say() -> None:
    check_options(PoolOptions())
    assert early_stopping(None) is None
