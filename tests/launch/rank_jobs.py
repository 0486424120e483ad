"""What ranks do in the tests of sessions: ``python rank_jobs.py NAME FOLDER``; imported, the same in one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import manyhands.launch
from manyhands.errors import ManyhandsError, Mismatch, RunFailed, UsageError

SAMPLES, BATCH = 27, 10
"""On 3 ranks batches of 4+3+3, and a last one of 3+2+2."""


def data(samples: int = SAMPLES) -> TensorDataset:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 1))


def parts(width: int = 8, samples: int = SAMPLES, **options: Any) -> tuple[Any, ...]:
    """(session, model, optimizer, scheduler, loader), prepared."""
    s = manyhands.launch.session(**options)
    model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    loader = DataLoader(data(samples), BATCH, shuffle=True)
    return (s, *s.prepare(model, optimizer, scheduler, loader))


def train(folder: Path, epochs: int = 2, **options: Any) -> list[float]:
    """Train on from the folder's checkpoint, with one after each epoch; the mean loss of each global batch."""
    s, model, optimizer, scheduler, loader = parts(**options)
    losses = []
    for epoch in range(s.resume(folder).get("epoch", 0), epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(s.mean(loss.item()))
        scheduler.step()
        s.save(folder, epoch=epoch + 1)
    return losses


def raised(kind: type[ManyhandsError], act: Any) -> str:
    """The message of the error that `act` raises."""
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def everything(folder: Path) -> None:
    """All that ranks can show one another, in one group: a launch is dear, a check is cheap."""
    losses = train(folder / "ddp")
    train(folder / "staged", strategy="staged")
    s, model, *_ = parts()
    assert s.rank == s.local_rank
    assert s.is_main == (s.rank == 0)
    numbers_agree(s)
    unequal_parameters_are_seen(s, model)
    a_checkpoint_of_another_model_changes_nothing(folder)
    a_resume_in_the_middle_goes_on_there(folder)
    fewer_samples_than_ranks(folder)
    nccl_needs_cuda()
    (folder / f"losses-{s.rank}").write_text("\n".join(map(repr, losses)))
    s.print("done")


def numbers_agree(s: Any) -> None:
    last = s.world_size - 1
    assert s.mean(float(s.rank)) == last / 2
    assert s.mean(float(s.rank), weight=float(s.rank == last)) == last
    assert s.sum(1) == s.world_size
    mean = s.mean(torch.tensor([1.0, s.rank]))
    assert mean.dtype == torch.float32
    assert mean.tolist() == [1.0, last / 2]
    indices = torch.tensor([index for part in s.split(data(), [0.7, 0.3]) for index in part.indices]).float()
    assert torch.equal(s.mean(indices), indices)
    assert sorted(indices.tolist()) == list(range(SAMPLES))


def unequal_parameters_are_seen(s: Any, model: nn.Module) -> None:
    s.check_equal(model)
    with torch.no_grad():
        s.unwrap(model)[2].bias += float(s.rank == 1)
    told = raised(RunFailed, lambda: s.check_equal(model))
    assert told.startswith("the parameter 2.bias on rank 1 is not that of rank 0"), told


def a_checkpoint_of_another_model_changes_nothing(folder: Path) -> None:
    s, model, *_ = parts(width=9)
    before = [p.detach().clone() for p in model.parameters()]
    told = raised(Mismatch, lambda: s.resume(folder / "ddp"))
    assert "0.weight is of shape (8, 6) there and of shape (9, 6) here" in told, told
    assert all(map(torch.equal, before, model.parameters()))
    assert s.resume(folder / "nothing yet") == {}
    ours = parts()[0]
    assert ours.resume(folder / "ddp", own=True) == {"epoch": 2}


def a_resume_in_the_middle_goes_on_there(folder: Path) -> None:
    s, _, _, _, loader = parts()
    seen: list[Tensor] = []
    for inputs, _ in loader:
        seen.append(inputs)
        if len(seen) == 1:
            s.save(folder / "middle", note="after one batch")
    again, _, _, _, other = parts()
    assert again.resume(folder / "middle") == {"note": "after one batch"}
    assert all(map(torch.equal, seen[1:], [inputs for inputs, _ in other]))


def fewer_samples_than_ranks(folder: Path) -> None:
    """A batch of 1 sample: the others keep step, and weigh nothing."""
    s, model, _, _, loader = parts(samples=BATCH + 1)
    shares = []
    for inputs, targets in loader:
        model.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        shares.append(s.sum(s.share))
    assert shares == [BATCH, 1], shares
    assert s.share is None
    torch.save([p.grad for p in model.parameters()], folder / f"gradients-{s.rank}.pt")


def sharded(folder: Path) -> None:
    train(folder / "fsdp", strategy="fsdp")
    s, *_ = parts(strategy="fsdp")
    assert s.resume(folder / "fsdp") == {"epoch": 2}
    train(folder / "first ddp")
    train(folder / "first ddp", epochs=3, strategy="fsdp")


def nccl_needs_cuda() -> None:
    told = raised(UsageError, lambda: manyhands.launch.session(backend="nccl", device="cpu"))
    assert "backend='nccl' needs CUDA" in told


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
