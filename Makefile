# Two commands do everything on a machine with Python and make: `make calibrate` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: calibrate test check torch docs bench slow clean

calibrate: $(STAMP)
	$(BIN)/calibrant calibrate boarding-school --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# PyTorch is optional: with it, the tests of `TorchModel` are run too.
torch: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch]'

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/brock_hommes.py

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The constraints pin what was tested.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist site runs .pytest_cache .ruff_cache
