# manyhands: everything a person runs. From a bare clone `make demo` and `make test` work alone.
.RECIPEPREFIX := >
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-one-half test-other-half test-slow check format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
> test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
> $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
> $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
> touch $(STAMP)

demo: setup
> $(BIN)/manyhands demo

# Two halves at once: most tests wait for processes of their own. Each half is whole rooms.
HALF := tests/chaos tests/cli tests/lending tests/pool tests/security

test: setup
> $(MAKE) --no-print-directory -j2 test-one-half test-other-half

test-one-half: setup
> $(BIN)/python -m pytest $(HALF)

test-other-half: setup
> $(BIN)/python -m pytest $(foreach room,$(HALF),--ignore=$(room))

test-slow: setup
> $(BIN)/python -m pytest -m slow --timeout 1800

check: setup
> $(BIN)/ruff format --check .
> $(BIN)/ruff check .
> $(BIN)/mypy
> $(BIN)/lint-imports

format: setup
> $(BIN)/ruff check --fix-only --quiet .
> $(BIN)/ruff format .

bench: setup
> for script in benchmarks/*.py; do echo "$$script" >&2; $(BIN)/python $$script || exit 1; done

clean:
> rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
