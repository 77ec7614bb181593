# Two commands do everything on a machine with Python and make: `make calibrate` and `make test`.

PYTHON ?= python3
# What pins the versions of everything that is installed: the versions that are tested.
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS)
# Bytecode on all cores, where pip makes it on one. Files that are no Python, as templates are, are passed over.
BYTECODE := -$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib
# One worker a core, each of which needs up to 6 GB.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: install calibrate test slow check docs bench torch clean

calibrate: $(VENV)/.calibrant
	$(BIN)/calibrant calibrate boarding-school --overwrite

test: $(VENV)/.test
	$(PYTEST)

# The long tests; and those that compare bits, with programs compiled as users compile them.
slow: $(VENV)/.test
	$(PYTEST) --optimised -m "slow or bits"

check: $(VENV)/.test $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	git ls-files -z '*.ipynb' | xargs -0 -r $(BIN)/nbstripout --verify --keep-id

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py

# Everything to work on the project with. PyTorch is optional: with it, the tests of `TorchModel` are run too.
install: $(VENV)/.test $(VENV)/.check $(VENV)/.docs
torch: $(VENV)/.test $(VENV)/.torch

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.calibrant: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) -e .
	$(BYTECODE)
	touch $@

# An optional group of dependencies.
$(VENV)/.%: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) -e '.[$*]'
	$(BYTECODE)
	touch $@

clean:
	rm -rf $(VENV) build dist site runs .pytest_cache .ruff_cache
