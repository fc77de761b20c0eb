# Two commands: `make demo` shows what this is, `make test` checks it. Both make .venv if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := .demo.index
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all lint bench test-compat clean

demo: $(VENV)/installed
	$(BIN)/mbretrieve index . --index $(DEMO)
	@for query in "where are documents cut into windows" "score a query against a document token by token" "leave out files that git ignores"; do \
	  printf '\n\033[1mmbretrieve search "%s"\033[0m\n' "$$query"; \
	  $(BIN)/mbretrieve search "$$query" --index $(DEMO) -k 3 || exit 1; \
	done

test: lint
	$(BIN)/python -m pytest -m "not slow" -n auto

test-all: lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whether anything became slower: ratios of times against those committed, which BENCH=update writes; BENCH=show measures
# less and fails nothing.
BENCH ?= compare
bench: $(VENV)/tested
	$(BIN)/python eval/bench/guard.py $(BENCH)

# The core on the lowest versions that pyproject.toml allows and beside PyLate 1.6, in an environment of its own.
test-compat: VENV := .venv-compat
test-compat:
	$(MAKE) VENV=$(VENV) CONSTRAINTS=constraints-lowest.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --constraint constraints-lowest.txt pylate bm25s PyStemmer matplotlib pytest pytest-xdist hypothesis
	MBRETRIEVE_PYLATE_PYTHON=$(VENV)/bin/python $(VENV)/bin/python -m pytest -m "not slow" -n auto \
	  tests/test_scoring.py tests/models tests/index tests/corpus tests/test_retriever.py tests/test_folder.py \
	  tests/cli --ignore tests/cli/test_eval_command.py

CONSTRAINTS ?= constraints.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Type: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. Type: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	scripts/install-torch $(BIN)/python $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-compat $(DEMO) dist
