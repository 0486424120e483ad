"""Each example runs as its own docstring says, learns, and gives the weights that one process gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def values(pattern: str, printed: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, printed)]


def weights(printed: str) -> str:
    return re.search(r"^weights ([0-9a-f]{64})$", printed, re.MULTILINE)[1]


def test_a_pool_of_two_nodes_learns_the_digits(terminals, reference_of):
    server, port = terminals.serve("pool_server.py", "--epochs", "3")
    nodes = [terminals.start("pool_node.py", "--port", port) for _ in range(2)]
    printed = terminals.finish(server)
    # The run may be over before the slower node has joined: then that node is told so, and ends badly.
    micro_batches = [re.findall(r"micro-batch (\d+)", node.communicate(timeout=60)[0]) for node in nodes]
    losses = values(r"test loss ([\d.]+)", printed)
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert values(r"accuracy ([\d.]+)", printed)[-1] > 0.75
    assert "4500 of 4500 samples applied" in printed
    assert sum(map(len, micro_batches)) >= 3 * (23 * 4 + 2)  # the last batch fills 2 leaves of 4
    assert weights(printed) == reference_of("pool_server.py", epochs=3)


def test_a_loop_of_ones_own_gives_the_same_bits(terminals, reference_of):
    server, port = terminals.serve("pool_server.py", "--epochs", "2")
    node = terminals.start("custom_loop_node.py", "--port", port)
    printed = terminals.finish(server)
    by_hand = terminals.finish(node)
    losses = values(r"loss ([\d.]+)", by_hand)
    assert losses[-1] < losses[0]
    assert re.search(r"this node computed \d+ micro-batches", by_hand)
    assert weights(printed) == reference_of("pool_server.py", epochs=2)


def test_the_text_model_learns_and_writes(terminals, reference_of):
    server, port = terminals.serve("text_server.py", "--epochs", "12")
    node = terminals.start("text_node.py", "--port", port)
    printed = terminals.finish(server)
    assert "the run is over" in terminals.finish(node)
    losses = values(r"epoch \d+: loss ([\d.]+)", printed)
    assert losses[-1] < 0.8 * losses[0]
    assert weights(printed) == reference_of("text_server.py", epochs=12)

    def sample(*arguments: str) -> str:
        common = ("--prompt", "The harbour", "--length", "60")
        return terminals.finish(terminals.start("text_sample.py", *common, *arguments))

    greedy = sample("--top-k", "1", "--seed", "1")
    assert greedy.startswith("The harbour")
    assert len(greedy) == len("The harbour") + 60 + 1
    assert set(greedy) <= set((EXAMPLES / "harbour.txt").read_text(encoding="utf-8"))
    assert greedy == sample("--top-k", "1", "--seed", "2", "--temperature", "3")
    assert greedy != sample("--top-k", "20", "--seed", "2", "--temperature", "3")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_three_screens_and_imports_what_is_public(script):
    text = script.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 125
    ours = {node.module for node in imports if node.module.startswith("manyhands")}
    assert ours <= {"manyhands", "manyhands.config"}
    if "_" in script.stem and script.stem != "text_model":
        assert 'if __name__ == "__main__":' in text


def test_sampling_needs_nothing_of_ours():
    tree = ast.parse((EXAMPLES / "text_sample.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"pathlib", "safetensors.torch", "text_model"}
    assert "manyhands" not in (EXAMPLES / "text_model.py").read_text(encoding="utf-8")
