# Everything from a fresh checkout: Python >= 3.10 and a C++ compiler are all that must be there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard src/rmsnorm/native/*.cpp src/rmsnorm/native/*.h)

.PHONY: help demo test lint bench format clean
help:
	@echo "make demo   set up, then train with each normaliser and compare (about four minutes)"
	@echo "make test   set up, then run the tests"
	@echo "make bench  set up with all peers, then time the kernels beside them"
	@echo "make lint   ruff and mypy"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rmsnorm needs Python >= 3.10: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras; the package is installed editable and rebuilt when its C++ sources change.
$(VENV)/.dev: $(VENV)/bin/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
$(VENV)/.demo: $(VENV)/bin/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[experiments]'
	@touch $@
$(VENV)/.bench: $(VENV)/bin/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/rmsnorm compare language

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/rmsnorm bench

clean:
	rm -rf build dist $(VENV)/.dev $(VENV)/.demo $(VENV)/.bench
