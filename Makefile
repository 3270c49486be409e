# make plan GPUS=256 CTX=2M    plan on a fresh machine (light install, no torch)
# make run                     plan, profile this machine, train LongVILA-tiny on a real video, ask it a question
# make test                    install everything and run the checks that CI runs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPUS ?= 256
CTX ?= 2M
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: plan run test check

$(VENV)/light: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/executor: $(VENV)/light
	$(PIP) --editable '.[executor]'
	touch $@

$(VENV)/test: $(VENV)/executor
	$(PIP) --editable '.[executor,test]'
	touch $@

plan: $(VENV)/light
	$(BIN)/plan --gpus $(GPUS) --ctx $(CTX)

run: $(VENV)/executor
	$(BIN)/python examples/run.py

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest
