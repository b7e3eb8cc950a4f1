# make            install into .venv
# make demo       the main job on a simulated scan, or on yours: make demo DWI=scan.nii.gz
# make test       linter and tests
# make test-slow  the tests that take minutes; some need real scans (EQDMRI_DATA)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all demo test test-slow clean

all: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: all
	$(BIN)/python scripts/demo.py $(if $(DWI),--dwi $(DWI))

test: all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

test-slow: all
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv demo dist
