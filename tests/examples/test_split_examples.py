"""Split mode's examples, two processes each: a network is trained, validated, and asked, where its GPU would be."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def settings(tmp_path):
    """A project's configuration, as a person has it: it is read by both sides."""
    (tmp_path / "config.yaml").write_text("training:\n  num_workers: 0\n  learning_rate: 0.003\n")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A network that knows its digits well enough, where train_gpu.py would have saved it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from digits import digits, network

    model, (train, test) = network(), digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(train.tensors[0]), train.tensors[1]).backward()
        optimizer.step()
    model.eval()
    save_file(model.state_dict(), tmp_path / "digits.safetensors")
    with torch.no_grad():
        return torch.softmax(model(test.tensors[0]), dim=1), test.tensors[1]


def values(pattern, printed):
    return [float(value) for value in re.findall(pattern, printed)]


def end(service):
    """Ctrl-C ends a service."""
    service.send_signal(signal.SIGINT)
    service.communicate(timeout=60)
    assert service.returncode in (130, -signal.SIGINT)


def test_training_with_validation_stops_early_or_not_and_saves_what_both_sides_saw(terminals, tmp_path):
    trainer, port = terminals.serve("train_gpu.py")
    loader = terminals.start("train_cpu.py", "--port", port, "--epochs", "4", "--validate")
    seen = terminals.finish(loader)
    printed = terminals.finish(trainer)
    losses = values(r"loss ([\d.]+),", seen)
    assert losses == values(r"loss ([\d.]+)", printed)
    assert losses[-1] < 0.5 * losses[0]
    assert values(r"accuracy ([\d.]+)", seen)[-1] > 0.8
    assert (tmp_path / "digits.safetensors").exists()


@pytest.mark.slow
def test_a_validation_has_the_figures_of_a_local_one(terminals, weights):
    scores, targets = weights
    service, port = terminals.serve("validate_gpu.py")
    for _ in range(2):
        printed = terminals.finish(terminals.start("validate_cpu.py", "--port", port))
        assert "297 samples in 3 batches" in printed
        loss = float(torch.nn.functional.nll_loss(scores.log(), targets))
        assert values(r"loss ([\d.]+)", printed) == [pytest.approx(loss, abs=1e-4)]
        accuracy = float((scores.argmax(1) == targets).float().mean())
        assert values(r"accuracy ([\d.]+)", printed) == [pytest.approx(accuracy, abs=1e-4)]
    end(service)


@pytest.mark.slow
def test_inference_keeps_what_is_sure_in_memory_and_on_disk(terminals, weights, tmp_path):
    scores, _ = weights
    service, port = terminals.serve("inference_gpu.py")
    sure = int((scores.max(1).values >= 0.9).sum())
    for more in ((), ("--output", "answers")):
        printed = terminals.finish(
            terminals.start("inference_cpu.py", "--port", port, "--threshold", "0.9", *more)
        )
        assert f"kept {sure} of 297 samples" in printed
        assert values(r"right: ([\d.]+)", printed)[0] > 0.9
    assert (tmp_path / "answers" / "predictions.npy").exists()
    end(service)


@pytest.mark.slow
def test_pictures_of_224_by_224_are_recognised(terminals, weights):
    scores, targets = weights
    service, port = terminals.serve("image_inference_example.py", "gpu")
    printed = terminals.finish(
        terminals.start("image_inference_example.py", "cpu", "--port", port, "--count", "64")
    )
    right = float((scores[:64].argmax(1) == targets[:64]).float().mean())
    assert "64 pictures of 224 x 224" in printed
    assert values(r"right: ([\d.]+)", printed) == [
        pytest.approx(right, abs=0.02)
    ]  # bytes are a little rounder
    end(service)


@pytest.mark.slow
def test_preprocessing_of_ones_own_makes_the_same_run_twice(terminals):
    printed = []
    for workers in ("0", "2"):
        trainer, port = terminals.serve("train_gpu.py")
        arguments = ("--port", port, "--epochs", "2", "--workers", workers)
        printed.append(terminals.finish(terminals.start("custom_preprocessing_cpu.py", *arguments)))
        terminals.finish(trainer)
    assert printed[0] == printed[1]
    losses = values(r"loss ([\d.]+)", printed[0])
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_notebook_dials_home_and_its_weights_come_home(terminals, tmp_path):
    loader = terminals.start("colab_cpu.py", "--listen", "0", "--epochs", "2", "--workers", "0")
    port = next(found[1] for line in loader.stdout if (found := re.search(r"mh://\S+:(\d+)", line)))
    notebook = terminals.start("colab_gpu.py", "--dial", f"localhost:{port}", "-f", "kernel.json")
    losses = values(r"loss ([\d.]+)", terminals.finish(notebook))
    assert losses == values(r"loss ([\d.]+)", terminals.finish(loader))
    assert losses[-1] < losses[0]
    assert (tmp_path / "digits.safetensors").exists()


@pytest.mark.slow
def test_a_notebook_without_a_tunnel_says_what_can_be_done(terminals):
    notebook = terminals.start("colab_gpu.py", "--port", "0")
    _, errors = notebook.communicate(timeout=60)
    assert notebook.returncode != 0
    assert "no tunnel is set up" in errors
    assert "loader.start_loading(listen_port=PORT)" in errors
