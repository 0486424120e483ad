"""Models that cannot be programs: the error names the line of the model that is why, and the way out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyhands.errors import CaptureFailed, UsageError
from manyhands.programs.capture import capture


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line of Branching
            return x * 2
        return x


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()  # the line of Item


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sys.stderr.write(f"{x.sum():.3f}\n")  # the line of Printing
        return x * 2


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] * 2  # the line of Masked


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(x.numpy())  # the line of Numpy


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()  # the line of Spectral


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # the line of Counting
        return x * self.calls


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.0  # the line of Overwriting
        return x * 2


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)  # the line of Halved


CASES = [
    (Branching, "decides by the values of a tensor"),
    (Item, "aten.item"),
    (Printing, "FakeTensor.__format__"),
    (Masked, "size depends on values"),
    (Numpy, "numpy"),
    (Spectral, "fft_rfft"),
    (Counting, "constant is changed in place"),
    (Overwriting, "batch is changed in place"),
    (Halved, "switches autocast on"),
]


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = model(batch).square().mean()
    return result


@pytest.mark.parametrize(("kind", "why"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_the_error_names_the_line_and_the_way_out(
    kind: type[nn.Module], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureFailed) as failure:
        capture(kind(), mean_square, [torch.randn(4, 4), torch.randn(3, 4)])
    message = str(failure.value)
    assert why in message
    assert f"{__file__}:{_line(kind)}" in message
    assert "TrainingNode(model=...)" in message
    assert failure.value.exit_code == 2
    assert "def forward" not in capfd.readouterr().err  # the exporter's own account is not shown


def _line(kind: type[nn.Module]) -> int:
    lines = Path(__file__).read_text().splitlines()
    return 1 + next(at for at, line in enumerate(lines) if line.endswith(f"# the line of {kind.__name__}"))


def test_where_all_code_is_torchs_the_module_is_named() -> None:
    with pytest.raises(CaptureFailed, match=r"rrelu.* in model\.1 \(RReLU\)"):
        capture(nn.Sequential(nn.Linear(4, 4), nn.RReLU()), mean_square, [torch.randn(4, 4)])


class Stepping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[:, 0]
        for step in range(1, x.shape[1]):
            y = y * x[:, step]
        return y


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 5 else x


def test_a_length_that_python_loops_over_cannot_vary() -> None:
    with pytest.raises(
        CaptureFailed, match=r"dimension 1 of batch tensor 0 varies \(4, 5 seen\).* fixes it to 5"
    ):
        capture(Stepping(), mean_square, [torch.randn(3, 4), torch.randn(3, 5)])
    capture(Stepping(), mean_square, [torch.randn(3, 4), torch.randn(2, 4)])  # and where it does not, it may


def test_a_branch_on_the_number_of_samples_is_refused() -> None:
    with pytest.raises(
        CaptureFailed, match=r"the number of samples .* branches on it: this way is for 2 to 5"
    ):
        capture(Large(), mean_square, [torch.randn(4, 4)])


def test_a_model_that_is_wrong_fails_in_its_own_words() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        capture(nn.Linear(3, 3), mean_square, [torch.randn(4, 4)])


def test_constants_of_more_than_a_program_carries_are_refused() -> None:
    class Tabled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.zeros(17 << 20)  # float32: 68 MiB that are neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[1]]

    with pytest.raises(CaptureFailed, match=r"register the large ones as buffers.*TrainingNode"):
        capture(Tabled(), mean_square, [torch.randn(4, 4)])


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([], "none was given"),
        ([(torch.ones(2, 4), 3), (torch.ones(2, 4), 4)], "differ in more than sizes"),
        ([torch.ones(2, 4), torch.ones(2, 4, 4)], "differ in more than sizes"),
        ([torch.ones(2, 4).numpy()], "batches of tensors only"),
        ([torch.ones(2, 4, dtype=torch.complex64)], "complex64, which no program takes"),
    ],
)
def test_batches_that_no_program_takes(batches: list[Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        capture(nn.Linear(4, 4), mean_square, batches)
