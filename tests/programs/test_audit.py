"""From the moment a program arrives, no file is opened and nothing is compiled, executed or imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

CHILD = """
import sys, torch
from building import mlp, single, Interpreter, ROOMY, parse, encode
from samples import all_samples
from manyhands.programs import constants
from manyhands.programs.operators import TABLE

torch.set_num_threads(1)
torch.manual_seed(0)
build, model, loss, scores = mlp([16, 32, 4])
parameters, data = list(model.parameters()), encode(build.program(loss, scores))
singles = [(key, *single(key, *call)) for key, calls in all_samples().items() for call in calls]
singles = [(key, encode(program), buffers, leaves) for key, program, buffers, leaves in singles]
warm = torch.ones(1, requires_grad=True)  # the engine's own first step, before anything has arrived
(warm * 2).sum().backward()

WATCHED = ("open", "compile", "exec", "import", "os.", "subprocess", "socket", "ctypes", "pickle")
seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:200])) if event.startswith(WATCHED) else None)

program = parse(data)
interpreter = Interpreter(program, "train", constants.tensors(program), ROOMY)
for rows in (2, 3):
    ran = interpreter.run(parameters, [], [torch.randn(rows, 16), torch.randint(0, 4, (rows,))])
    ran.loss.backward()
broken = [("mlp", *event) for event in seen]
for key, data, buffers, leaves in singles:
    seen.clear()
    Interpreter(parse(data), "eval", [], ROOMY).run([], buffers, leaves)
    broken += [(key, *event) for event in seen]
sys.stdout.write("".join(f"{line}\\n" for line in broken))
"""


def test_no_file_no_compile_no_exec_no_import_while_a_program_is_read_and_run():
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD], cwd=HERE, capture_output=True, text=True, timeout=100
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout == ""
