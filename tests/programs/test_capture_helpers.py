"""Helpers that look at values are asked once and baked; then they are themselves again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

from manyhands.errors import CaptureFailed
from manyhands.programs.capture import capture
from manyhands.programs.helpers import asking, baked
from manyhands.programs.proof import prove
from manyhands.programs.recurrent import open_lengths


class Encoder(nn.Module):
    """Leaves it to torch to find out that its mask is the causal one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        result: Tensor = self.layers(x, mask=mask)
        return result


def loss_of(model: nn.Module, batch: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    output: Tensor = model(*batch) if isinstance(batch, tuple) else model(batch)
    return output.square().mean()


def test_a_mask_made_in_forward_is_detected_once() -> None:
    """Trap: the comparison has no answer under a tracer, and export fails in ``_detect_is_causal_mask``."""
    before = transformer._detect_is_causal_mask
    torch.manual_seed(0)
    model = Encoder()
    captured = capture(model, loss_of, [torch.randn(4, 6, 8), torch.randn(3, 5, 8)])
    assert transformer._detect_is_causal_mask is before
    prove(captured, model, loss_of, [torch.randn(2, 7, 8)])
    assert captured.program.graphs.train is not None
    assert not any(node.operator.startswith("eq") for node in captured.program.graphs.train.nodes)


def test_answers_that_differ_between_batches_are_no_property_of_the_model() -> None:
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    with pytest.raises(
        CaptureFailed, match="_detect_is_causal_mask answers differently for different batches"
    ):
        capture(
            Encoder(), loss_of, [(torch.randn(4, 6, 8), causal), (torch.randn(4, 6, 8), torch.zeros(6, 6))]
        )


def test_helpers_come_back_after_a_failure() -> None:
    before = transformer._detect_is_causal_mask
    with pytest.raises(ZeroDivisionError), asking(), baked([]):
        raise ZeroDivisionError
    assert transformer._detect_is_causal_mask is before


def test_answers_are_given_once_each_in_their_order() -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    with baked([("_detect_is_causal_mask", False), ("_detect_is_causal_mask", True)]):
        given = [transformer._detect_is_causal_mask(mask, None, 3) for _ in range(3)]
    assert given == [False, True, True]  # the third is the helper's own


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_trace_does_not_fix_the_length(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Last(kind(4, 6, num_layers=2, bidirectional=True))
    captured = capture(model, loss_of, [torch.randn(5, 3, 4), torch.randn(4, 3, 4)])
    assert captured.program.batch.leaves[0].shape == (None, 3, 4)
    prove(captured, model, loss_of, [torch.randn(9, 3, 4)])


class Last(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        result: Tensor = states[-1]
        return result


def test_the_recurrent_operators_come_back() -> None:
    before = dict(torch.ops.aten.lstm.input.py_kernels)
    with open_lengths():
        assert dict(torch.ops.aten.lstm.input.py_kernels) != before
    assert dict(torch.ops.aten.lstm.input.py_kernels) == before
