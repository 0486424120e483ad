"""Trees taken apart and put together: what may travel, what arrives, and what is refused with its path."""

from __future__ import annotations

import copy
import enum
import pickle
from collections import OrderedDict, UserDict, namedtuple

import msgspec
import numpy as np
import pytest
import torch
from torch.utils import _pytree

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import NamedRow, Structure, flatten, named_row, unflatten
from manyhands.tensors.structure import MAX_DEPTH, Row, Seq, Slot, Table

torch.set_num_threads(1)
Pair = namedtuple("Pair", ["image", "index"])


def there_and_back(tree):
    structure, tensors = flatten(tree)
    wire = msgspec.msgpack.encode(structure)
    return unflatten(msgspec.msgpack.decode(wire, type=Structure), tensors)


def nested(depth):
    tree = 1
    for _ in range(depth):
        tree = [tree]
    return tree


class Colour(enum.IntEnum):
    RED = 3


class Word(enum.StrEnum):
    YES = "yes"


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        -(2**63),
        2**64 - 1,
        0.1,
        float("-inf"),
        "naïve",
        "",
        [],
        (),
        {},
        [[], (), {}],
        {"a": (1, [2.0, None]), 3: False, None: "x", 2.5: ()},
        torch.Size([2, 3]),
    ],
)
def test_plain_trees_come_back_equal_and_of_the_same_types(tree):
    back = there_and_back(tree)
    assert back == tree
    assert repr(back) == repr(tuple(tree) if isinstance(tree, torch.Size) else tree)


def test_tensors_come_back_as_the_very_same_objects_in_place():
    x, y = torch.ones(2), torch.zeros(3)
    back = there_and_back({"x": x, "more": [(y, 7)]})
    assert back["x"] is x
    assert back["more"][0][0] is y
    assert back["more"][0][1] == 7


def test_signed_zero_and_nan_survive():
    zero, nan = there_and_back([-0.0, float("nan")])
    assert str(zero) == "-0.0"
    assert nan != nan


def test_mappings_arrive_as_dicts_in_their_order():
    batch = UserDict(b=1, a=OrderedDict(d=2, c=3))
    back = there_and_back(batch)
    assert type(back) is dict
    assert type(back["a"]) is dict
    assert list(back) == ["b", "a"]
    assert list(back["a"]) == ["d", "c"]


def test_subclasses_of_scalars_arrive_as_what_they_hold():
    back = there_and_back([Colour.RED, Word.YES, np.str_("no")])
    assert back == [3, "yes", "no"]
    assert [type(item) for item in back] == [int, str, str]


def test_a_named_tuple_arrives_as_a_row_that_reads_like_one():
    row = there_and_back(Pair(torch.ones(1), 5))
    assert isinstance(row, NamedRow)
    assert row._fields == ("image", "index")
    assert row.index == 5, "the field wins over tuple.index"
    assert row[1] == 5
    assert row._asdict()["index"] == 5
    assert row._replace(index=6).index == 6
    assert named_row(["a", "b"], [1, 2]) == (1, 2)
    assert type(row)(1, 2) == (1, 2), "torch's collate and pin_memory rebuild named tuples this way"
    assert repr(named_row(["a"], [1])) == "NamedRow(a=1)"
    image, index = row
    assert (image is row.image, index) == (True, 5)


def test_a_row_copies_pickles_and_is_a_named_tuple_to_torch():
    row = named_row(["a", "b"], [1, [2]])
    assert copy.deepcopy(row) == row
    assert pickle.loads(pickle.dumps(row)).b == [2]
    assert _pytree.tree_map(lambda item: item * 2, row).a == 2
    assert there_and_back(row).a == 1


def test_renamed_fields_and_rows_without_fields_travel():
    bad_names = namedtuple("bad_names", ["class", "ok"], rename=True)
    assert there_and_back(bad_names(1, 2))._0 == 1
    assert there_and_back(namedtuple("Nothing", [])()) == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("a", "a"), "twice"),
        (("__class__",), "__class__"),
        (("_fields",), "_fields"),
        (("_make",), "_make"),
        (("a b",), "identifier"),
        (("x=__import__('os')",), "identifier"),
        (("",), "identifier"),
        (("a" * 129,), "129"),
    ],
)
def test_a_received_field_name_is_an_identifier_or_refused(fields, says):
    with pytest.raises(ProtocolError, match=says):
        unflatten(Structure((Row(fields), *range(len(fields)))), [])
    with pytest.raises(UsageError, match=says):
        named_row(fields, range(len(fields)))


def test_a_row_refuses_a_wrong_number_of_items_and_unknown_names():
    with pytest.raises(UsageError, match="got 1 items"):
        named_row(["a", "b"], [1])
    with pytest.raises(UsageError, match="has no"):
        named_row(["a"], [1])._replace(b=2)


class Foo:
    pass


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": [0, 1, Foo()]}, r"batch\['x'\]\[2\] is a Foo: "),
        ({1, 2}, r"batch is a set: "),
        ([b"jpeg"], r"batch\[0\] is a bytes: "),
        ({"x": {(1, 2): 3}}, r"the key \(1, 2\) of batch\['x'\] is a tuple: "),
        (Pair(1, Foo()), r"batch\[1\] is a Foo: "),
        ([2**64], r"batch\[0\] is a int: .*64 bits"),
        (["\ud800"], r"batch\[0\] is a str: .*surrogate"),
        ([np.array(["a"])], r"batch\[0\] is a ndarray: .*<U1"),
        ([np.array([object()])], r"batch\[0\] is a ndarray: .*object"),
        ([np.ma.array([1], mask=[True])], r"batch\[0\] is a MaskedArray: "),
        ([np.longdouble(1)], r"batch\[0\] is a longdouble: "),
        ([torch.empty(2, device="meta")], r"meta device"),
        ([torch.eye(2).to_sparse()], r"to_dense"),
    ],
)
def test_what_cannot_travel_is_named_by_its_path(tree, message):
    with pytest.raises(UsageError, match=message):
        flatten(tree)


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_a_quantized_tensor_is_refused():
    with pytest.raises(UsageError, match="quint8"):
        flatten([torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)], name="state")


def test_depth_is_bounded_on_both_sides_so_a_cycle_ends():
    assert there_and_back(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    with pytest.raises(UsageError, match="deeper than 32"):
        flatten(nested(MAX_DEPTH + 1))
    cycle = []
    cycle.append(cycle)
    with pytest.raises(UsageError, match="deeper than 32"):
        flatten(cycle)
    with pytest.raises(ProtocolError, match="deeper than 32"):
        unflatten(Structure((*[Seq("list", 1)] * (MAX_DEPTH + 1), 1)), [])


def test_too_many_nodes_are_refused():
    with pytest.raises(UsageError, match="1,000,000 nodes"):
        flatten([0] * 1_000_000)


@pytest.mark.parametrize(
    ("nodes", "num_tensors", "says"),
    [
        ((1, 2), 0, "goes on"),
        ((Seq("list", 2), 1), 0, "1 items early"),
        ((Seq("list", 1_000_000),), 0, "1000000 items early"),
        ((Table(("a", "a")), 1, 2), 0, "twice"),
        ((Table((1, True)), 1, 2), 0, "twice"),
        ((Slot(),), 0, "room for 1 tensors, and 0"),
        ((1,), 1, "room for 0 tensors, and 1"),
        ((Slot("number"),), 1, "1 dimensions"),
        ((Seq("tuple", 0), 3), 0, "goes on"),
    ],
)
def test_a_structure_that_contradicts_itself_is_refused(nodes, num_tensors, says):
    with pytest.raises(ProtocolError, match=says):
        unflatten(Structure(nodes), [torch.ones(2)] * num_tensors)


def test_numpy_arrays_and_numbers_come_back_as_such():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    back = there_and_back({"a": array, "n": np.float64(0.5), "b": np.bool_(True)})
    assert type(back["a"]) is np.ndarray
    assert back["a"].dtype == np.int16
    assert np.array_equal(back["a"], array)
    assert type(back["n"]) is np.float64
    assert type(back["b"]) is np.bool_


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6)[::-1],
        np.arange(6, dtype=">i4"),
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.array(7.0),
        np.zeros((0, 3), dtype=np.complex64),
        np.zeros(3, dtype=[("a", "u1"), ("b", "<f4")])["b"],
    ],
    ids=["fortran", "reversed", "big-endian", "read-only", "strided", "0-d", "empty", "odd-stride"],
)
def test_any_numpy_layout_travels_without_a_warning(array):
    back = there_and_back(array)
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.dtype == array.dtype.newbyteorder("=")


def test_a_writable_numpy_array_is_not_copied():
    array = np.arange(5.0)
    _, tensors = flatten(array)
    assert tensors[0].data_ptr() == array.ctypes.data


def test_an_array_announced_in_a_dtype_without_numpy_is_refused():
    with pytest.raises(ProtocolError, match="bfloat16"):
        unflatten(Structure((Slot("array"),)), [torch.ones(1, dtype=torch.bfloat16)])
