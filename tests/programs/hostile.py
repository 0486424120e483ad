"""Programs that mean harm, by name, as bytes; and a child that judges each of them.

Run as ``python hostile.py``: it warms up with an honest program, forbids itself files, compiling and executing by
an audit hook, and prints a line for each hostile program: name, CPU milliseconds, KiB of growth, refusal, events.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from building import Builder, mlp

from manyhands.errors import ProgramRefused
from manyhands.programs import constants
from manyhands.programs.format import HEADER, MAGIC, Program, Ref, Word, encode
from manyhands.programs.interpreter import Interpreter
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits

LENT = Limits(bytes=256 << 20, flops=10**10, nodes=2_000)
CODE = "__import__('os').system('touch /tmp/owned')"

Tree = Any
"""A program's control part as plain lists, to be spoiled."""


def honest() -> bytes:
    build, _, loss, scores = mlp([8, 16, 4])
    return encode(build.program(loss, scores))


def enveloped(control: bytes, data: bytes = b"") -> bytes:
    return HEADER.pack(MAGIC, 1, len(control)) + control + data


def respelled(change: Callable[[Tree], None]) -> bytes:
    """An honest program's bytes after `change` spoiled its plain lists."""
    tree = msgspec.msgpack.decode(honest()[HEADER.size :])
    change(tree)
    return enveloped(msgspec.msgpack.encode(tree))


def every_string_spoiled() -> Iterator[tuple[str, bytes]]:
    """An honest program once for each of its strings, with code in that string's place."""
    whole = msgspec.msgpack.decode(honest()[HEADER.size :])
    paths: list[tuple[int, ...]] = []

    def walk(node: Tree, path: tuple[int, ...]) -> None:
        if isinstance(node, str):
            paths.append(path)
        elif isinstance(node, list):
            for at, item in enumerate(node):
                walk(item, (*path, at))

    walk(whole, ())
    for path in paths:

        def spoil(tree: Tree, path: tuple[int, ...] = path) -> None:
            for at in path[:-1]:
                tree = tree[at]
            tree[path[-1]] = CODE

        yield f"code at {'.'.join(map(str, path))}", respelled(spoil)


def graph_of(tree: Tree) -> Tree:
    return tree[5][0]


def nodes_of(tree: Tree) -> Tree:
    return graph_of(tree)[1]


def written(make: Callable[[Builder], Ref]) -> bytes:
    build = Builder()
    return encode(build.program(None, make(build), mode="eval"))


def spelled() -> Iterator[tuple[str, bytes]]:
    """What the parser must refuse."""
    operators = [
        *(
            "from_file.default",
            "save.default",
            "add.out",
            "empty.memory_format",
            "resize_.default",
            "set_.default",
        ),
        *("as_strided.default", "native_batch_norm.default", "_softmax.default", "mse_loss_backward.default"),
        *("nonzero.default", "masked_select.default", "__import__", "os.system", "", "add", "py.eval"),
        *(
            "int.__class__",
            "add.Tensor\0",
            "lstm.data",
            "sparse_coo_tensor.size",
            "equal.default",
            "item.default",
        ),
    ]
    for operator in operators:
        yield (
            f"operator {operator!r}",
            respelled(lambda tree, o=operator: nodes_of(tree)[0].__setitem__(0, o)),
        )
    arguments: list[tuple[str, Tree]] = [
        ("a forward reference", ["v", 99, None]),
        ("a reference to itself", ["v", 6, None]),
        ("a negative reference", ["v", -1, None]),
        ("a huge reference", ["v", 1 << 62, None]),
        ("an element of one tensor", ["v", 0, 0]),
        ("a bool for a tensor", True),
        ("an int for a tensor", 1),
        ("a text for a tensor", CODE),
        ("a dict for a tensor", {"__reduce__": CODE}),
        ("bytes for a tensor", b"\x80\x04"),
        ("a list in a list", ["l", [["l", [["l", []]]]]]),
        ("a long list", ["l", [0] * 513]),
        ("an unknown dtype", ["d", "float32); import os"]),
        ("an unknown word", ["w", CODE]),
        ("an unknown tag", ["x", CODE]),
        ("an equation of code", ["e", CODE]),
    ]
    for name, argument in arguments:
        yield name, respelled(lambda tree, a=argument: nodes_of(tree)[0][1].__setitem__(0, a))
    for name, value in [
        ("NaN", float("nan")),
        ("infinity", float("inf")),
        ("a bool", True),
        ("a large int", 1 << 41),
    ]:
        summed = ["sum.dim_IntList", [["v", 4, None], ["l", [value]]]]
        yield f"{name} for an int", respelled(lambda tree, n=summed: nodes_of(tree).__setitem__(2, n))
    for name, value in [("NaN", float("nan")), ("infinity", float("inf")), ("a reference", ["v", 4, None])]:
        scaled = ["mul.Scalar", [["v", 4, None], value]]
        yield f"{name} for a number", respelled(lambda tree, n=scaled: nodes_of(tree).__setitem__(2, n))
    for name in ("out", "__class__", "device", "generator", "self", CODE[:30]):
        keyword = [[name, None]]
        yield f"keyword {name!r}", respelled(lambda tree, k=keyword: nodes_of(tree)[0].__setitem__(2, k))
    deep = 100_000
    yield "arrays 10^5 deep", enveloped(b"\x91" * deep + b"\x90")
    yield "maps 10^5 deep", enveloped(b"\x81\x01" * deep + b"\xc0")
    yield "JSON 10^5 deep", enveloped(b"[" * deep + b"]" * deep)
    yield "an array of 2^32 - 1", enveloped(b"\x98\x01\xdd\xff\xff\xff\xff")
    yield "a text of 2^32 - 1", enveloped(b"\x98\x01\xdb\xff\xff\xff\xff")
    yield "a map of 2^32 - 1", enveloped(b"\xdf\xff\xff\xff\xff")
    yield "35,000 nodes", respelled(lambda tree: graph_of(tree).__setitem__(1, [["relu.default"]] * 35_000))
    refs = ["l", [["v", 0, None]] * 10]
    yield (
        "80,000 references",
        respelled(lambda tree: graph_of(tree).__setitem__(1, [*[["cat.default", [refs]]] * 8_000, ["nope"]])),
    )
    yield (
        "a structure of a million",
        respelled(lambda tree: tree[4].__setitem__(0, [[["s", "list", 1 << 19]]])),
    )
    yield "too long a control part", enveloped(b"\xc0" * (3 << 20))
    yield "bytes that the header does not know", honest() + b"\0" * 4096
    yield (
        "a pickle",
        enveloped(
            b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
        ),
    )
    yield "a zip", b"PK\x03\x04" + b"\0" * 200
    yield "nothing", b""
    yield "a tensor of 2^80 elements", respelled(lambda tree: tree[1][0].__setitem__(2, [1 << 40, 1 << 40]))
    yield "a parameter twice", respelled(lambda tree: tree[1][0].__setitem__(0, tree[1][1][0]))
    yield "an input that is not there", respelled(lambda tree: graph_of(tree)[0][0].__setitem__(1, 77))


def f32(build: Builder, *shape: int) -> Ref:
    return build.leaf(torch.float32, *shape)


def _bomb(key: str, times: list[int]) -> Callable[[Builder], Ref]:
    def make(build: Builder) -> Ref:
        x = f32(build, *[1] * len(times))
        return build.call(key, x, times)

    return make


def _doubling(build: Builder) -> Ref:
    x = f32(build, 1024)
    for _ in range(40):
        x = build.call("cat.default", [x, x])
    return x


def _growing(build: Builder) -> Ref:
    x = f32(build, 9)
    size = build.call("sym_size.int", x, 0)
    for _ in range(200):
        size = build.call("int.mul", size, size)
    return build.call("full.default", [1], size)


def _flops(build: Builder) -> Ref:
    x = f32(build, 1, 4096)
    grid = build.call("expand.default", x, [4096, 4096])
    for _ in range(20):
        grid = build.call("mm.default", grid, grid)
    return grid


def _lstm(build: Builder, *, rows: int = 16, steps: int = 5) -> Ref:
    x, h, c = f32(build, steps, 2, 3), f32(build, 1, 2, 4), f32(build, 1, 2, 4)
    weights = [f32(build, rows, 3), f32(build, 16, 4), f32(build, 16), f32(build, 16)]
    made = build.call("lstm.input", x, [h, c], weights, True, 1, 0.0, False, False, False)
    return Ref(made.value, 0)


def _norm(build: Builder) -> Ref:
    x, short = f32(build, 4, 3000), build.buffer(torch.zeros(3))
    other = build.buffer(torch.zeros(3))
    return build.call("batch_norm.default", x, None, None, short, other, False, 0.1, 1e-5, False)


def _attention(keys: int, values: int, mask: tuple[int, ...] | None = None) -> Callable[[Builder], Ref]:
    def make(build: Builder) -> Ref:
        q, k, v = f32(build, 1, 2, 64, 8), f32(build, 1, 2, keys, 8), f32(build, 1, 2, values, 8)
        hidden = None if mask is None else f32(build, *mask)
        return build.call("scaled_dot_product_attention.default", q, k, v, hidden)

    return make


def _one(key: str, *shapes: tuple[int, ...], **kwargs: Any) -> Callable[[Builder], Ref]:
    return lambda build: build.call(key, *[f32(build, *shape) for shape in shapes], **kwargs)


def _with(key: str, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Callable[[Builder], Ref]:
    return lambda build: build.call(key, f32(build, *shape), *args, **kwargs)


def _first(key: str, shape: tuple[int, ...], *args: Any) -> Callable[[Builder], Ref]:
    return lambda build: Ref(build.call(key, f32(build, *shape), *args).value, 0)


def _division(build: Builder) -> Ref:
    size = build.call("sym_size.int", f32(build, 3), 0)
    return build.call("full.default", [build.call("int.floordiv", size, 0)], 1.0)


def shaped() -> Iterator[tuple[str, bytes]]:
    """What parses, and the dry run must refuse."""
    tera = 1 << 40
    programs: list[tuple[str, Callable[[Builder], Ref]]] = [
        ("an expand bomb", _bomb("expand.default", [1 << 20, 1 << 20])),
        ("a repeat bomb", _bomb("repeat.default", [1 << 20, 1 << 20])),
        ("a repeat bomb that overflows", _bomb("repeat.default", [tera] * 4)),
        ("a full bomb", lambda b: b.call("full.default", [1 << 20, 1 << 19], 1.0)),
        ("a full bomb that overflows", lambda b: b.call("full.default", [tera] * 8, 1.0)),
        ("an arange bomb", lambda b: b.call("arange.default", 1e300)),
        ("an arange of tiny steps", lambda b: b.call("arange.start_step", 0.0, 1.0, 1e-300)),
        ("a doubling bomb", _doubling),
        ("an int that grows", _growing),
        ("a FLOP bomb", _flops),
        ("a sequence of 10^9 steps", lambda b: _lstm(b, steps=10**9)),
        ("short LSTM weights", lambda b: _lstm(b, rows=4)),
        ("short BatchNorm statistics", _norm),
        ("attention with K shorter than V", _attention(64, 512)),
        ("attention with V shorter than K", _attention(512, 64)),
        ("attention with a short mask", _attention(64, 64, (64, 3))),
        (
            "attention with queries of another width",
            _one("scaled_dot_product_attention.default", *[(1, 2, 4, w) for w in (8, 9, 8)]),
        ),
        ("a split into 10^6", _first("split.Tensor", (10**6,), 1, 0)),
        ("an unbind of 10^6", _first("unbind.int", (10**6,), 0)),
        ("a padding bomb", _with("constant_pad_nd.default", (1, 1), [tera, 0])),
        ("a one-hot bomb", lambda b: b.call("one_hot.default", b.leaf(torch.int64, 1000), 1 << 39)),
        ("an up-sampling bomb", _with("upsample_nearest2d.vec", (1, 1, 64, 64), None, [1000.0, 1000.0])),
        (
            "an up-sampling whose factor lies",
            _with("upsample_nearest2d.default", (1, 1, 8, 8), [4, 4], 1e-30, 1e-30),
        ),
        ("a huge kernel", _with("max_pool2d.default", (1, 1, 8, 8), [tera, tera])),
        (
            "a window that misses its image",
            _with("max_pool2d.default", (1, 4, 6, 6), [2, 3], [2, 2], [1, 1], [7, 1]),
        ),
        ("a stride of 0", _with("avg_pool2d.default", (1, 1, 8, 8), [2, 2], [0, 0])),
        ("a dimension that is not there", _with("sum.dim_IntList", (3,), [7])),
        (
            "a division that traps",
            lambda b: b.call("div.Scalar_mode", b.leaf(torch.int64, 3), -1, rounding_mode="trunc"),
        ),
        ("a size divided by zero", _division),
        (
            "a sparse gradient",
            lambda b: b.call("embedding.default", f32(b, 3, 4), b.leaf(torch.int64, 2), -1, False, True),
        ),
        ("an index by mask", lambda b: b.call("index.Tensor", f32(b, 3), [b.leaf(torch.bool, 3)])),
        ("nine dimensions", _with("view.default", (1,), [1] * 9)),
        ("2,001 nodes", _many),
    ]
    for name, make in programs:
        yield name, written(_declared(make))


def _many(build: Builder) -> Ref:
    x = f32(build, 1)
    for _ in range(2001):
        x = build.call("relu.default", x)
    return x


def _declared(make: Callable[[Builder], Ref]) -> Callable[[Builder], Ref]:
    """Words in keyword arguments travel as words."""

    def wrapped(build: Builder) -> Ref:
        ask = build.call

        def call(key: str, *args: Any, **kwargs: Any) -> Ref:
            return ask(key, *args, **{k: Word(v) if isinstance(v, str) else v for k, v in kwargs.items()})  # type: ignore[arg-type]

        build.call = call  # type: ignore[method-assign]
        return make(build)

    return wrapped


def all_hostile() -> list[tuple[str, bytes]]:
    return [*every_string_spoiled(), *spelled(), *shaped()]


def judge(data: bytes) -> Program:
    """What a node does with a program before it runs: parse it, make its constants, dry-run it on its own shapes."""
    program = parse(data)
    for name, graph in (("train", program.graphs.train), ("eval", program.graphs.eval)):
        if graph is not None:
            leaves = [
                (getattr(torch, leaf.dtype), tuple(2 if size is None else size for size in leaf.shape))
                for leaf in program.batch.leaves
            ]
            Interpreter(program, name, constants.tensors(program), LENT).cost(leaves)
    return program


def main() -> None:
    judge(honest())
    seen: list[str] = []
    cases = all_hostile()
    watched = ("open", "compile", "exec", "import", "os.system", "subprocess.Popen", "socket.connect")
    sys.addaudithook(lambda event, _args: seen.append(event) if event in watched else None)
    for name, data in cases:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            judge(data)
            refusal = None
        except ProgramRefused as error:
            refusal = str(error)
        milliseconds = 1000 * (time.process_time() - start)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        events, seen[:] = seen[:], []
        sys.stdout.write(json.dumps([name, milliseconds, grown, refusal, events]) + "\n")


if __name__ == "__main__":
    main()
