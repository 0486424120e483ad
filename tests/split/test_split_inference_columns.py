"""From outputs to arrays: what the device keeps, what is dropped, and what it takes in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyhands.errors import UsageError
from manyhands.split.inference.collecting import InMemory, InOrder
from manyhands.split.inference.reducing import reduce_output
from manyhands.split.inference.wishes import Wishes


def scores(rows: int = 40, classes: int = 9, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


INDICES = tuple(range(100, 140))


def test_the_columns_are_those_of_a_softmax_by_hand():
    logits = scores()
    wishes = Wishes(top_k=3, return_full_probabilities=True, return_raw_outputs=True)
    columns = reduce_output(logits, wishes, INDICES)
    probabilities = torch.softmax(logits, 1)
    assert columns["indices"].tolist() == list(INDICES)
    assert columns["predictions"].tolist() == logits.argmax(1).tolist()
    assert np.array_equal(columns["confidences"], probabilities.max(1).values.numpy())
    assert np.array_equal(columns["top_k_indices"], logits.topk(3).indices.numpy())
    assert np.array_equal(columns["top_k_probabilities"], probabilities.topk(3).values.numpy())
    assert np.array_equal(columns["probabilities"], probabilities.numpy())
    assert np.array_equal(columns["raw_outputs"], logits.numpy())
    logits.zero_()
    assert columns["raw_outputs"].any()  # memory of its own: the batch's is used again


@pytest.mark.parametrize("threshold", [0.5, 0.99, 1.0])
def test_only_rows_at_or_above_the_threshold_are_kept_in_their_order(threshold):
    logits = scores()
    logits[7] = torch.tensor([200.0] + [0.0] * 8)
    columns = reduce_output(logits, Wishes(confidence_threshold=threshold), INDICES)
    confidences = torch.softmax(logits, 1).max(1).values.numpy()
    expected = [INDICES[row] for row in range(40) if confidences[row] >= threshold]
    assert expected
    assert len(expected) < 40
    assert columns["indices"].tolist() == expected
    assert (columns["confidences"] >= threshold).all()
    assert {len(column) for column in columns.values()} == {len(expected)}


def test_a_batch_of_which_nothing_is_kept_still_has_its_columns():
    columns = reduce_output(torch.zeros(40, 9), Wishes(confidence_threshold=0.5, top_k=2), INDICES)
    assert columns["top_k_indices"].shape == (0, 2)
    assert columns["top_k_indices"].dtype == np.int32


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_number_a_sample_is_its_prediction(shape):
    output = torch.randn(shape)
    columns = reduce_output(output, Wishes(), INDICES)
    assert np.array_equal(columns["predictions"], output.reshape(-1).numpy())
    assert sorted(columns) == ["indices", "predictions"]


def test_logits_in_a_dict_and_half_precision_come_as_numbers_of_numpy():
    columns = reduce_output({"logits": scores().bfloat16()}, Wishes(return_raw_outputs=True), INDICES)
    assert columns["raw_outputs"].dtype == np.float32
    assert columns["confidences"].dtype == np.float32


@pytest.mark.parametrize(
    ("output", "wishes", "message"),
    [
        (scores(), Wishes(top_k=10), "top_k=10, and the model has 9 classes"),
        (torch.zeros(40), Wishes(top_k=2), "one number a sample"),
        (torch.zeros(40), Wishes(confidence_threshold=0.5), "confidence_threshold=0.5 needs scores"),
        (torch.zeros(40, 3, 3), Wishes(), "return_raw_outputs=True"),
        (torch.zeros(39, 3), Wishes(), r"\(39, 3\) for a batch of 40 samples"),
        ((torch.zeros(40, 3),), Wishes(), "without a loss or logits"),
    ],
)
def test_a_wish_that_the_output_cannot_fulfil_is_named(output, wishes, message):
    with pytest.raises(UsageError, match=message):
        reduce_output(output, wishes, INDICES)


def test_whatever_has_samples_first_can_be_had_raw():
    columns = reduce_output(torch.ones(40, 3, 3), Wishes(return_raw_outputs=True), INDICES)
    assert columns["raw_outputs"].shape == (40, 3, 3)


@pytest.mark.parametrize("given", [{"top_k": 0}, {"confidence_threshold": 1.1}, {"return_details": 1}])
def test_impossible_wishes_are_named(given):
    with pytest.raises(UsageError, match=next(iter(given))):
        Wishes(**given).check()


def collected(num_samples: int | None, wishes: Wishes, batch: int = 40) -> dict:
    sink = InMemory({"top_k": wishes.top_k}, num_samples, wishes.return_details)
    logits = scores(100)
    for start in range(0, 100, batch):
        rows = logits[start : start + batch]
        sink.add(len(rows), reduce_output(rows, wishes, tuple(range(start, start + len(rows)))))
    return sink.finish()


@pytest.mark.parametrize("num_samples", [None, 100, 10])
def test_a_result_has_every_row_once_and_says_what_it_takes(num_samples):
    wishes = Wishes(top_k=2, return_details=True)
    result = collected(num_samples, wishes)
    assert (result["total_samples"], result["total_batches"], result["kept_samples"]) == (100, 3, 100)
    assert result["indices"].tolist() == list(range(100))
    assert result["predictions"].tolist() == scores(100).argmax(1).tolist()
    arrays = [value for value in result.values() if isinstance(value, np.ndarray)]
    assert result["estimated_memory_mb"] == sum(array.nbytes for array in arrays) / 1e6
    details = result["detailed_results"]
    assert details[3]["prediction"] == result["predictions"][3]
    assert details["top_k_indices"].shape == (100, 2)
    assert result["config"] == {"top_k": 2}
    filtered = collected(num_samples, Wishes(confidence_threshold=0.9))
    assert filtered["kept_samples"] == len(filtered["indices"]) < 100
    assert filtered["total_samples"] == 100


def test_the_estimate_is_what_the_process_takes():
    """A fresh process, so that no memory of other tests is reused."""
    import subprocess
    import sys

    program = """
import numpy as np, psutil
from manyhands.split.inference.collecting import InMemory
process = psutil.Process()
sink = InMemory({}, 200_000)
before = process.memory_info().rss
for start in range(0, 200_000, 1000):
    rows = np.arange(start, start + 1000)
    sink.add(1000, {"indices": rows, "probabilities": np.ones((1000, 100), np.float32)})
result = sink.finish()
taken = (process.memory_info().rss - before) / 1e6
print(taken / result["estimated_memory_mb"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.1


def test_batches_of_several_trainers_are_put_in_order_and_counted_once():
    sink = InMemory({}, 6)
    order = InOrder(sink)
    for sequence in (2, 0, 0, 1, 2):
        order.add(sequence, 2, {"indices": np.array([2 * sequence, 2 * sequence + 1])})
    assert sink.finish()["indices"].tolist() == [0, 1, 2, 3, 4, 5]
