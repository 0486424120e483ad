"""Whole jobs, over the real wire: trainer and loader find each other, train, validate, and survive a kill."""

from __future__ import annotations

import json
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from split_sshd import SSHD, free_port, sshd
from split_trainers import serving, trainer_process, up
from split_training_parts import Noisy, digits, model, plain_loop
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.errors import Mismatch, NonFinite, RunFailed, UsageError
from manyhands.split.colab import ColabGPUTrainer
from manyhands.split.loader import CPULoader
from manyhands.split.trainer import GPUTrainer
from manyhands.split.tunnels.ssh import SshTunnel
from manyhands.training.state import weights_sha256


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "60")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def trainer_of(net, **setup):
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(net, **setup)
    return trainer


def loader_of(data, **setup):
    loader = CPULoader(num_workers=0)
    loader.setup_dataset(data, **{"batch_size": 16, **setup})
    return loader


def test_an_ordered_job_has_the_loss_curve_of_a_local_dataloader(tmp_path):
    data = Noisy(digits())
    theirs, ours = model(), model()
    expected = plain_loop(data, theirs, epochs=2, batch_size=16, seed=11)
    trainer = GPUTrainer(port=0, host="localhost", log=f"csv:{tmp_path / 'log.csv'}")
    trainer.setup_model(ours)
    with serving(trainer, GPUTrainer.start_training) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(data, seed=11)
        history = loader.start_loading(gpu_host=host, gpu_port=port, epochs=2)
    assert outcome["result"] == history
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    column = rows[0].index("loss")
    assert [float(row[column]) for row in rows[1:] if row[column]] == expected
    assert weights_sha256(ours) == weights_sha256(theirs)
    loader.save_model(tmp_path / "weights.safetensors")
    saved = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in theirs.state_dict().items())
    other = trainer_of(model(features=6))
    with torch.no_grad():
        other.model[0].weight.zero_()
    other.load(tmp_path / "weights.safetensors")
    assert weights_sha256(other.model) == weights_sha256(theirs)


@pytest.mark.slow
def test_a_trainer_killed_in_an_epoch_and_resumed_ends_with_the_bits_of_an_undisturbed_run(tmp_path, state):
    data = Noisy(digits(100))
    theirs = model(dropout=0.2)
    torch.manual_seed(5)
    plain_loop(data, theirs, epochs=2, batch_size=16, seed=11)
    port, folder, weights = free_port(), tmp_path / "checkpoints", tmp_path / "weights"
    script = "split_training_job.py"
    histories: list[dict] = []
    with trainer_process(script, port, folder, False, weights, 1e-4, state=state, folder=tmp_path) as trainer:
        loader = CPULoader(num_workers=0, invite=trainer.invite())
        loader.setup_dataset(data, batch_size=16, seed=11)
        loading = threading.Thread(
            target=lambda: histories.append(loader.start_loading("localhost", gpu_port=port, epochs=2))
        )
        loading.start()
        trainer.line("step 10")
        trainer.kill()
    with trainer_process(script, port, folder, True, weights, 1e-4, state=state, folder=tmp_path) as trainer:
        loading.join(60)
        assert not loading.is_alive()
        assert trainer.end() == 0, "".join(trainer.errors)
    assert "going on from" in "".join(trainer.errors)
    assert len(histories[0]["train_loss"]) == 2
    saved = load_file(weights)
    assert all(torch.equal(saved[name], value) for name, value in theirs.state_dict().items())


def test_ctrl_c_saves_what_was_trained_and_ends_with_130(tmp_path, state):
    folder = tmp_path / "checkpoints"
    port = free_port()
    arguments = ("split_training_job.py", port, folder, False, tmp_path / "weights", 5)
    with trainer_process(*arguments, state=state, folder=tmp_path) as trainer:
        loader = CPULoader(num_workers=0, invite=trainer.invite())
        loader.setup_dataset(digits(500), batch_size=1)
        histories: list[dict] = []
        loading = threading.Thread(
            target=lambda: histories.append(loader.start_loading("localhost", gpu_port=port, epochs=50))
        )
        loading.start()
        trainer.line("step 3")
        trainer.process.send_signal(signal.SIGINT)
        assert trainer.end() in (130, -signal.SIGINT), "".join(trainer.errors)
        loading.join(60)
        assert not loading.is_alive()
    assert histories[0]["train_loss"] == []
    assert "ending after this batch, and saving" in "".join(trainer.errors)
    assert list(folder.glob("run-0001/step-*"))


def test_validation_as_a_service_equals_a_local_evaluation():
    net, held_out = model(), digits(37, seed=3)
    trainer = trainer_of(net, criterion=nn.CrossEntropyLoss())
    with serving(trainer, lambda t: t.start_service("validation")) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(held_out, shuffle=False)
        result = loader.run_validation(host, val_dataset=held_out, gpu_port=port)
        again = loader.run_validation(host, gpu_port=port, batch_size=10)
        with pytest.raises(Mismatch, match="this trainer validates, and the loader asks for training"):
            loader.start_loading(host, gpu_port=port)
        trainer.stop()
    x, y = held_out.tensors
    net.eval()
    with torch.no_grad():
        logits = net(x)
    loss = float(nn.functional.cross_entropy(logits, y))
    assert (result["total_samples"], result["total_batches"]) == (37, 3)
    assert result["average_loss"] == pytest.approx(loss, abs=1e-6)
    assert again["average_loss"] == pytest.approx(loss, abs=1e-6)
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=1e-6)
    top5 = (logits.topk(5).indices == y[:, None]).any(1).float().mean()
    assert result["top5_accuracy"] == pytest.approx(float(top5), abs=1e-6)
    assert [row["samples"] for row in result["detailed_results"]] == [16, 16, 5]


def test_regression_is_validated_without_accuracies():
    x = torch.randn(37, 6)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    net = model(outputs=1)
    trainer = trainer_of(net, criterion=nn.MSELoss())
    with serving(trainer, lambda t: t.start_service("validation")) as outcome:
        host, port = up(trainer, outcome)
        result = loader_of(data).run_validation(host, gpu_port=port)
        trainer.stop()
    net.eval()
    with torch.no_grad():
        expected = float(nn.functional.mse_loss(net(x), data.tensors[1]))
    assert result["average_loss"] == pytest.approx(expected, abs=1e-6)
    assert "accuracy" not in result
    assert "top5_accuracy" not in result


def test_inference_keeps_only_confident_rows_and_goes_on_in_its_folder(tmp_path):
    net, data = model(), digits(101, seed=3)
    with torch.no_grad():
        net[3].weight.mul_(40)
    net.eval()
    with torch.no_grad():
        probabilities = torch.softmax(net(data.tensors[0]), 1)
    confident = (probabilities.max(1).values >= 0.99).nonzero().flatten().tolist()
    assert 0 < len(confident) < 101
    trainer = trainer_of(net)
    with serving(trainer, lambda t: t.start_service("inference")) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(data, shuffle=False)
        kept = loader.run_inference(host, gpu_port=port, confidence_threshold=0.99)
        full = loader.run_inference(
            host, gpu_port=port, top_k=3, return_full_probabilities=True, return_raw_outputs=True
        )
        written = [loader.run_inference(host, gpu_port=port, output=tmp_path / "out") for _ in range(2)]
        with pytest.raises(UsageError, match="top_k=8, and the model has 7 classes"):
            loader.run_inference(host, gpu_port=port, top_k=8)
        trainer.stop()
    assert kept["indices"].tolist() == confident
    assert (kept["confidences"] >= 0.99).all()
    assert (kept["total_samples"], kept["kept_samples"]) == (101, len(confident))
    assert np.allclose(full["probabilities"], probabilities.numpy(), atol=1e-6)
    assert full["top_k_indices"].shape == (101, 3)
    assert full["predictions"].tolist() == probabilities.argmax(1).tolist()
    for result in written:
        assert result["indices"].tolist() == list(range(101))
        assert result["predictions"].tolist() == full["predictions"].tolist()


def test_an_error_of_the_computation_reaches_both_sides():
    x, y = (t.clone() for t in digits().tensors)
    x[20] = float("nan")
    trainer = trainer_of(model())
    with serving(trainer, GPUTrainer.start_training) as outcome:
        host, port = up(trainer, outcome)
        with pytest.raises(NonFinite, match=r"epoch 0, batch 1 .* is nan"):
            loader_of(TensorDataset(x, y), shuffle=False).start_loading(host, gpu_port=port, epochs=1)
    assert isinstance(outcome["error"], NonFinite)


def test_the_trainer_can_dial_a_loader_that_listens():
    ours = model()
    trainer = trainer_of(ours)
    loader, port = loader_of(digits()), free_port()
    with serving(trainer, lambda t: t.start_training("localhost", cpu_port=port)) as outcome:
        history = loader.start_loading(listen_port=port, epochs=2)
    assert outcome["result"] == history
    assert len(history["train_loss"]) == 2


@pytest.mark.skipif(SSHD is None, reason="there is no sshd on this machine (apt install openssh-server)")
def test_a_trainer_in_a_notebook_is_reached_through_ssh(tmp_path, capsys):
    with sshd(tmp_path) as server:
        trainer = ColabGPUTrainer(port=0)
        trainer.setup_model(model())
        tunnel = SshTunnel(server.destination, options=server.options)
        with serving(trainer, lambda t: t.start_training_with_tunnel(tunnel=tunnel)) as outcome:
            up(trainer, outcome)
            gap = threading.Event()
            while (info := trainer.get_tunnel_info()) is None:
                assert "error" not in outcome, outcome
                gap.wait(0.01)
            assert info["provider"] == "ssh"
            assert info["port"] != trainer.address[1]
            loader = CPULoader(num_workers=0, invite=info["invite"])
            loader.setup_dataset(digits(), batch_size=16)
            history = loader.start_loading(info["host"], gpu_port=info["port"], epochs=1)
        assert outcome["result"] == history
        assert trainer.get_tunnel_info() is None
        assert "reached through ssh" in capsys.readouterr().out


def test_what_cannot_start_says_why():
    with pytest.raises(UsageError, match="call setup_model"):
        GPUTrainer(port=0).start_training()
    trainer = trainer_of(model())
    with pytest.raises(UsageError, match="mode='serve' is not one of"):
        trainer.start_service("serve")
    trainer.resume = True
    with pytest.raises(UsageError, match="resume=True needs a checkpoint_dir"):
        trainer.start_training()
    with pytest.raises(UsageError, match="no address before"):
        trainer.address  # noqa: B018
    with pytest.raises(UsageError, match="there are no weights at"):
        trainer.load("nowhere.safetensors")
    with pytest.raises(UsageError, match=r"must be a torch\.nn\.Module"):
        GPUTrainer().setup_model(lambda x: x)


class Slow(torch.utils.data.Dataset):
    """Never ends within a test."""

    def __init__(self, gate):
        self.gate = gate

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index >= 32:
            self.gate.wait(30)
        return torch.zeros(6)


def test_an_inference_whose_trainer_is_stopped_has_no_result(tmp_path):
    """A result that looks complete and is not would be taken for one."""
    gate = threading.Event()
    trainer = trainer_of(model())
    errors: list[BaseException] = []
    with serving(trainer, lambda t: t.start_service("inference")) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(Slow(gate), batch_size=8)

        def infer() -> None:
            try:
                loader.run_inference(host, gpu_port=port, output=tmp_path / "out")
            except RunFailed as error:
                errors.append(error)

        asking = threading.Thread(target=infer)
        asking.start()
        gap = threading.Event()
        while not list((tmp_path / "out").glob("*.npy")):
            gap.wait(0.01)
        trainer.stop()
        gate.set()
        asking.join(30)
        assert not asking.is_alive()
    assert "stopped in the middle of this inference" in str(errors[0])
    assert not json.loads((tmp_path / "out" / "watermark.json").read_text())["finished"]
