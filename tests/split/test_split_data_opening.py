"""What a user gives as a dataset becomes samples with their dtypes kept, or an error that names the place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from manyhands.errors import UsageError
from manyhands.split.data import (
    Columns,
    create_simple_dataset,
    dataset_length,
    is_stream,
    open_dataset,
    split_dataset,
)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class Squares(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, index**2]), index


class Counting(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(7))


def test_arrays_keep_their_dtypes() -> None:
    x, y = np.random.rand(5, 2), np.arange(5, dtype=np.uint8)
    opened = open_dataset((x, y))
    assert len(opened) == 5
    assert opened[3][0].dtype == torch.float64
    assert opened[3][1].dtype == torch.uint8
    assert opened[3][0].tolist() == x[3].tolist()
    assert (
        open_dataset([torch.zeros(4, 3, dtype=torch.float16), torch.arange(4)])[0][0].dtype == torch.float16
    )
    assert open_dataset(([[1, 2], [3, 4]], [0, 1]))[1][0].tolist() == [3, 4]


def test_arrays_that_torch_cannot_take_as_they_are_are_copied() -> None:
    frozen = np.arange(6.0)
    frozen.flags.writeable = False
    for x in (np.arange(6.0)[::-1], frozen[::1], np.arange(6, dtype=">f8")):
        opened = open_dataset((x, np.arange(6)))
        assert opened[4][0].item() == x[4]


def test_rows_of_many_are_the_batch_of_the_single_ones() -> None:
    opened = create_simple_dataset(20, 3, 4)
    together, alone = opened.rows([4, 0, 19]), default_collate([opened[4], opened[0], opened[19]])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(together, alone, strict=True))
    assert type(together) is type(alone)


def test_datasets_of_torch_pass_through() -> None:
    squares, counting = Squares(), Counting()
    assert open_dataset(squares) is squares
    assert open_dataset(counting) is counting
    assert is_stream(counting)
    assert not is_stream(squares)
    two_samples = [(torch.zeros(2), 0), (torch.ones(2), 1)]
    assert open_dataset(two_samples) is two_samples
    assert open_dataset(TensorDataset(torch.arange(3)))[1] == (torch.tensor(1),)


def test_lengths_are_asked_for_or_counted() -> None:
    assert dataset_length(Squares()) == 10
    assert dataset_length(Counting()) == 7

    class NoLength(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return index

    with pytest.raises(UsageError, match=r"train data .NoLength. has no length.*__len__"):
        dataset_length(NoLength(), "train data")
    with pytest.raises(UsageError, match="is empty: it has 0 samples"):
        dataset_length([])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), r"as many rows each, and these have \[3, 4\]"),
        ((np.zeros((0, 2)), np.zeros(0)), "empty"),
        ((np.zeros(3), np.array(["a", "b", "c"])), r"dataset\[1\] holds elements of <U1"),
        ((np.zeros(3), 5.0), r"dataset\[1\] is a single number"),
        (iter([1, 2]), "can be read only once"),
        ({"x": [1], "y": [2]}, "is a dict"),
        (7, "is a int: give a torch Dataset"),
        ("/no/such/file.csv", "there is no file /no/such/file.csv"),
        ("data.xls", "data.xls is no .csv, .npy, .npz, .parquet file"),
    ],
)
def test_what_is_no_dataset_is_named(given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_dataset(given)


def test_csv_has_its_target_last(tmp_path: Path) -> None:
    opened = open_dataset(str(written(tmp_path / "a.csv", "a,b,label\n1,2.5,0\n-3,4e2,2\n\n")))
    assert [part.tolist() for part in opened.rows([0, 1])] == [[[1.0, 2.5], [-3.0, 400.0]], [0, 2]]
    assert [part.dtype for part in opened[0]] == [torch.float32, torch.int64]
    regression = open_dataset(written(tmp_path / "b.csv", "1,2,3.0\n4,5,6.5\n"))
    assert regression[1][1].dtype == torch.float32
    assert regression[1][1].item() == 6.5
    quoted = open_dataset(written(tmp_path / "c.csv", '"first, x",y\n"1",2\n'))
    assert [part.tolist() for part in quoted[0]] == [[1.0], 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n3\n", r"row 3: 1 columns where the rows before have 2"),
        ("1,2\n3,4,5\n", r"row 2: 3 columns where the rows before have 2"),
        ("a,b\n1,2\nred,4\n", r"row 3, column 1 \('a'\): 'red' is not a number"),
        ("1,2\n3,blue\n", r"row 2, column 2: 'blue' is not a number"),
        ("a,b,c\n1,,3\n", r"row 2, column 2 \('b'\): the cell is empty"),
        ("a,b\n1,2\n3,1_000\n", "row 3, column 2 .*'1_000' is not a number"),
        ("", "is empty"),
        ("a,b\n", "has a header and no rows"),
        ("a\n1\n", "has 1 column: the last one is the target"),
    ],
)
def test_a_bad_csv_names_row_and_column(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        open_dataset(written(tmp_path / "bad.csv", text))
    assert "bad.csv" in str(caught.value)


def test_a_csv_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00,1\n")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        open_dataset(tmp_path / "bad.csv")


def test_npy_is_mapped_not_read(tmp_path: Path) -> None:
    array = np.arange(12, dtype=">i2").reshape(4, 3)
    np.save(tmp_path / "x.npy", array)
    opened = open_dataset(tmp_path / "x.npy")
    assert opened[2].tolist() == [6, 7, 8]
    assert opened[2].dtype == torch.int16
    assert opened.rows([3, 0]).tolist() == [[9, 10, 11], [0, 1, 2]]
    assert isinstance(opened.columns[0]._array, np.memmap)


def test_npz_gives_its_arrays_target_last(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", y=np.array([0, 1]), X=np.eye(2, dtype=np.float32), mask=np.ones((2, 1), bool)
    )
    assert [part.dtype for part in open_dataset(tmp_path / "a.npz")[1]] == [
        torch.float32,
        torch.bool,
        torch.int64,
    ]
    np.savez_compressed(tmp_path / "b.npz", np.arange(3))
    assert open_dataset(tmp_path / "b.npz")[2].item() == 2


def test_nothing_in_a_file_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"X": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", X=np.array([print], dtype=object))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(UsageError, match=f"{name} is no .*of numbers"):
            open_dataset(tmp_path / name)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "torn.npy").write_bytes(b"")
    for name in ("torn.npz", "torn.npy"):
        with pytest.raises(UsageError, match=name):
            open_dataset(tmp_path / name)


def test_parquet_keeps_dtypes_and_lists(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.float32([1, 2]), "b": np.float32([3, 4]), "y": np.int32([0, 1])})
    frame.to_parquet(tmp_path / "plain.parquet")
    x, y = open_dataset(tmp_path / "plain.parquet")[1]
    assert (x.tolist(), x.dtype, y.item(), y.dtype) == ([2.0, 4.0], torch.float32, 1, torch.int32)
    frame["b"] = [[1.0, 2.0], [3.0, 4.0]]
    frame.to_parquet(tmp_path / "lists.parquet")
    assert [part.tolist() for part in open_dataset(tmp_path / "lists.parquet")[1]] == [2.0, [3.0, 4.0], 1]


def test_a_bad_parquet_names_its_column(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for bad, says in (
        ({"a": ["x", "y"], "y": [0, 1]}, "column 'a' holds elements of object"),
        ({"a": [1.0, None], "y": [0, 1]}, "column 'a', row 1: the cell is empty"),
        ({"a": [[1, 2], [3]], "y": [0, 1]}, "column 'a', row 1: a list of 1 where the first has 2"),
        ({"y": [0, 1]}, "has 1 columns"),
    ):
        pandas.DataFrame(bad).to_parquet(tmp_path / "bad.parquet")
        with pytest.raises(UsageError, match=says):
            open_dataset(tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match="is no Parquet file"):
        open_dataset(written(tmp_path / "torn.parquet", "PAR1"))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow.*manyhands\[data\]"):
        open_dataset(written(tmp_path / "a.parquet", "PAR1"))


@pytest.mark.parametrize(
    "dataset", [Squares(), create_simple_dataset(10, 2, 2), open_dataset(([[1]] * 10, [1] * 10))]
)
def test_a_split_is_the_same_each_time_and_loses_nothing(dataset: Any) -> None:
    train, held = split_dataset(dataset, 0.3, seed=4)
    again = split_dataset(dataset, 0.3, seed=4)[1]
    assert (len(train), len(held)) == (7, 3)
    assert [str(held[i]) for i in range(3)] == [str(again[i]) for i in range(3)]
    assert sorted(str(part[i]) for part in (train, held) for i in range(len(part))) == sorted(
        str(dataset[i]) for i in range(10)
    )


def test_another_seed_splits_otherwise() -> None:
    whole = Columns([torch.arange(100)])
    one, other = (split_dataset(whole, 0.5, seed)[1].columns[0] for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("share", "dataset", "says"),
    [
        (1.5, Squares(), "val_split is 1.5"),
        (0.01, Squares(), "leaves 10 to train on and 0"),
        (0.5, Counting(), "give val_dataset"),
    ],
)
def test_a_split_that_cannot_be_is_refused(share: float, dataset: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        split_dataset(dataset, share)


def test_the_simple_dataset_is_the_same_each_time_and_learnable() -> None:
    dataset = create_simple_dataset(2000, 20, 5)
    x, y = dataset.rows(range(2000))
    assert (x.shape, x.dtype, y.dtype) == ((2000, 20), torch.float32, torch.int64)
    assert torch.equal(x, create_simple_dataset(2000, 20, 5).rows(range(2000))[0])
    assert torch.bincount(y).tolist() == [400] * 5
    centres = torch.stack([x[:1000][y[:1000] == label].mean(0) for label in range(5)])
    nearest = torch.cdist(x[1000:], centres).argmin(1)
    assert (nearest == y[1000:]).float().mean() > 0.9
    with pytest.raises(UsageError, match="num_classes is 0"):
        create_simple_dataset(num_classes=0)
