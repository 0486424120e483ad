"""Floats that travel narrower: to the bit where that can be, within a stated error, or refused."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from manyhands.errors import ProtocolError, UsageError
from manyhands.split.jobs import Width
from manyhands.split.narrow import check_transfer_dtype, narrow, widen
from manyhands.tensors import frame

PIXELS = torch.arange(256, dtype=torch.uint8)


def test_pictures_of_bytes_come_back_to_the_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        for picture in (PIXELS.to(dtype) / 255, PIXELS.to(dtype)):
            sent, widths = narrow((picture, torch.tensor(3)), "uint8")
            assert sent[0].dtype == torch.uint8
            assert torch.equal(sent[0], PIXELS)
            back = widen(sent, widths)
            assert back[0].dtype == dtype
            assert torch.equal(back[0], picture)


@pytest.mark.parametrize(
    ("name", "error"),
    [("uint8", 0.5 / 255 + 1e-7), ("float16", 2**-12), ("bfloat16", 2**-9), ("float32", 2**-25)],
)
def test_the_error_is_what_is_promised(name: str, error: float) -> None:
    x = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sent, widths = narrow(x, name)
    assert sent.dtype == getattr(torch, name)
    assert (widen(sent, widths) - x).abs().max() <= error
    assert not torch.equal(widen(sent, widths), x)


@pytest.mark.parametrize(
    ("values", "name", "says"),
    [
        ([-0.1, 0.5], "uint8", "holds -0.1 to 0.5: normalise in the model"),
        ([0.5, 1.5], "uint8", "holds 0.5 to 1.5"),
        ([0.0, 256.0], "uint8", "holds 0 to 256"),
        ([0.0, float("nan")], "uint8", "nan"),
        ([1.0, 7e4], "float16", "reaches 65504, and this batch holds 1 to 70000"),
    ],
)
def test_what_does_not_fit_is_refused(values: list[float], name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        narrow(torch.tensor(values), name)


def test_infinities_stay_what_they_are() -> None:
    x = torch.tensor([1.0, float("-inf"), float("nan")])
    for name in ("float16", "bfloat16"):
        assert torch.equal(widen(*narrow(x, name)).isfinite(), x.isfinite())


def test_targets_and_other_dtypes_travel_as_they_are() -> None:
    x, y = torch.rand(2, 3), torch.rand(2)
    ids = torch.tensor([[1, 2]])
    for batch in ((x, ids, y), [x, ids, y], {"pixels": x, "ids": ids, "labels": y}):
        sent, widths = narrow(batch, "float16")
        assert type(sent) is type(batch)
        parts = list(sent.values()) if isinstance(sent, dict) else sent
        assert [part.dtype for part in parts] == [torch.float16, torch.int64, torch.float32]
        assert parts[2] is y
        assert widths == (Width("float32"), None, None)


def test_what_is_narrow_already_stays() -> None:
    x = torch.rand(3).half()
    assert narrow([x, x], "bfloat16") == ([x, x], ())
    assert narrow(x, None) == (x, ())
    assert narrow(torch.empty(0, 3), "float16")[0].dtype == torch.float16


def test_any_nest_survives_the_wire_and_widens() -> None:
    pair = namedtuple("pair", "left right")
    batch: Any = {
        "a": [torch.rand(2), (torch.rand(2, dtype=torch.float64), "text")],
        "b": pair(torch.rand(1), 5),
    }
    sent, widths = narrow(batch, "float32")
    back = widen(frame.decode(frame.encode(sent).to_bytes()), widths)
    assert back["a"][1][0].dtype == torch.float64
    assert torch.equal(back["a"][0], batch["a"][0])
    assert back["b"].right == 5
    assert back["a"][1][1] == "text"


def test_widths_of_a_peer_are_checked() -> None:
    x = torch.zeros(2, dtype=torch.uint8)
    for widths, says in (
        ((Width("float32"), None), "2 widths and 1 tensors"),
        ((Width("int64"),), "'int64', which is no floating dtype"),
        ((Width("os.system"),), "no floating dtype"),
    ):
        with pytest.raises(ProtocolError, match=says):
            widen(x, widths)
    with pytest.raises(ProtocolError, match="fewer widths"):
        widen((x, x), (Width("float32"),))


def test_unknown_transfer_dtypes_are_named() -> None:
    check_transfer_dtype("uint8")
    check_transfer_dtype(None)
    with pytest.raises(UsageError, match="transfer_dtype is 'int4'"):
        check_transfer_dtype("int4")
