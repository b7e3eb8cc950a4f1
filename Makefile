# make            install into .venv
# make demo       the main job on a simulated scan, or on yours: make demo DWI=scan.nii.gz
# make test       linter and tests
# make test-slow  the tests that take minutes; some need real scans (EQDMRI_DATA)
# make study      the study of scanners never seen, from its cohort on: make study DATA=folder/of/scans
PYTHON ?= python3
STEPS ?= 400
BIN := .venv/bin
# a process for each core, and no more threads than cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: all demo test test-slow study clean

all: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# As it was typed: make would take $ in a name for its own, and the shell blanks and quotes.
unexport DWI
export SCAN := $(value DWI)

demo: all
	$(BIN)/python scripts/demo.py $${SCAN:+"--dwi=$$SCAN"}

test: all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not slow"

test-slow: all
	$(PYTEST) -m slow

# A run that has its line in results/study is not done again. Long form, for a GPU: make study STEPS=20000 FORM=--long
study: all
	$(BIN)/python scripts/make_cohort.py study/cohort --data $(DATA)
	$(BIN)/python scripts/study.py study --steps $(STEPS) $(FORM)
	$(BIN)/python scripts/study_report.py

clean:
	rm -rf .venv demo dist
