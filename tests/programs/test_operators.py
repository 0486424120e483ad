"""The table is closed, and no call that its rows let through ends a process or breaks a promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import all_samples

from manyhands.programs.operators import TABLE
from manyhands.programs.operators.row import Kind, Result

HERE = Path(__file__).parent
FORBIDDEN = re.compile(
    r"backward|native_|^_[^_]|\.out|empty|resize|^set_|as_strided|from_file|save|sparse|^nonzero|masked_select|unique"
    r"|quantize|item|_like_sparse|\bview\.dtype|to\.device"
)


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TABLE["add.Tensor"] = None  # type: ignore[index]


@pytest.mark.parametrize("key", sorted(TABLE))
def test_a_row_is_a_forward_operator_of_known_arguments(key):
    row = TABLE[key]
    assert row.key == key
    assert not FORBIDDEN.search(key)
    assert all(isinstance(parameter.kind, Kind) for parameter in row.parameters)
    names = {parameter.name for parameter in row.parameters}
    assert set(row.writes) <= names
    assert not names & {"out", "device", "layout", "generator", "pin_memory"}
    keyword_tensors = [p for p in row.parameters if p.keyword_only and "tensor" in p.kind.value]
    assert keyword_tensors == []  # the assembly binds keywords before it runs
    if row.result is not Result.NUMBER:
        returns = [str(one.real_type) for one in row.call._schema.returns]
        assert all("Tensor" in one for one in returns)


def test_every_row_has_a_sample():
    assert set(all_samples()) == set(TABLE)


def fuzz(tmp_path: Path, seed: int, seconds: float) -> int:
    """Calls made by a child of broken samples; the test fails with the call where it ends or is surprised."""
    case = tmp_path / "case"
    case.touch()
    child = subprocess.run(
        [sys.executable, str(HERE / "fuzzing.py"), str(seed), str(seconds), str(case)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = case.read_text().partition("\n")[0]
    assert child.returncode >= 0, f"signal {-child.returncode} at {last}"
    assert child.returncode == 0, child.stdout
    return int(child.stdout.split()[2])


def test_broken_calls_raise_or_give_what_was_promised(tmp_path):
    assert fuzz(tmp_path, seed=7, seconds=12) > 500


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_broken_calls_raise_or_give_what_was_promised_for_long(tmp_path, seed):
    assert fuzz(tmp_path, seed=100 + seed, seconds=60) > 5_000


@pytest.mark.parametrize("case", ["attention", "lstm"])
def test_the_fence_shows_what_an_operator_reads_beyond_its_arguments(case):
    """The fuzz would be blind if memory beyond a tensor could be read: these calls, which our rows refuse, must die."""
    calls = {
        "attention": "A.scaled_dot_product_attention.default(c(1, 2, 64, 8), c(1, 2, 64, 8), c(1, 2, 512, 8))",
        "lstm": "A.lstm.input(c(6, 3, 5), [c(1, 3, 64)] * 2, [c(4, 5), c(4, 64), c(4), c(4)], "
        "True, 1, 0.0, False, False, False)",
    }
    code = (
        "import torch; from fuzzing import Fence; A = torch.ops.aten; F = Fence(16, 1 << 20)\n"
        f"c = lambda *shape: F.copy(torch.rand(shape))\n{calls[case]}"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, timeout=60)
    assert child.returncode < 0


def test_what_kernels_overlook_where_nothing_is_to_do_is_refused():
    """Found by the fuzz: for an empty result eager keeps another shape, or another dtype, than it gives otherwise."""
    added = {"self": torch.zeros(()), "mat": torch.zeros(0, 4), "vec": torch.zeros(4), "beta": 1, "alpha": 1}
    assert TABLE["addmv.default"].infer is not None
    with pytest.raises(ValueError, match="is not stretched"):
        TABLE["addmv.default"].infer(added)
    convolved = {
        "input": torch.zeros(0, 4, 6, dtype=torch.int64),
        "weight": torch.zeros(6, 2, 3),
        "bias": torch.zeros(6),
        "stride": [1],
        "padding": "same",
        "dilation": [1],
        "groups": 2,
    }
    problem = TABLE["conv1d.padding"].problem(convolved)
    assert problem is not None
    assert "without samples is torch.int64" in problem
    assert TABLE["conv1d.padding"].problem({**convolved, "input": torch.zeros(0, 4, 6)}) is None


def test_numbers_of_another_dtype_are_refused_where_eager_would_promote_them():
    """Found by the fuzz too."""
    assert TABLE["inner.default"].infer is not None
    with pytest.raises(ValueError, match="a product of"):
        TABLE["inner.default"].infer(
            {"self": torch.zeros((), dtype=torch.bfloat16), "other": torch.zeros(3, 4)}
        )
    counts = {"input": torch.zeros(3, dtype=torch.int64), "target": torch.zeros(3), "reduction": 1}
    assert "floating" in (TABLE["poisson_nll_loss.default"].problem(counts) or "")
