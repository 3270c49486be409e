# make plan GPUS=256 CTX=2M    plan on a fresh machine (light install, no torch)
# make run                     plan, profile this machine, train LongVILA-tiny on a real video, ask it a question
# make pages                   write the pages whose numbers come from commands: accuracy, quality, headline, curves, README's answer
# make certificate             write anew how wrong prices are on rows that were not fitted
# make schema                  write the JSON Schema of plan.json from the classes that read it
# make test                    install everything and run the checks that CI runs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPUS ?= 256
CTX ?= 2M
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: plan run certificate pages schema test check

$(VENV)/executor: EXTRAS = [executor]
$(VENV)/validation: EXTRAS = [validation]
$(VENV)/test: EXTRAS = [executor,validation,test]
$(VENV)/light $(VENV)/executor $(VENV)/validation $(VENV)/test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.$(EXTRAS)'
	touch $(VENV)/light $@

plan: $(VENV)/light
	$(BIN)/plan --gpus $(GPUS) --ctx $(CTX)

run: $(VENV)/executor
	$(BIN)/python examples/run.py

pages: certificate
	$(BIN)/python -m validation --markdown docs/accuracy.md --plot docs/accuracy.svg
	$(BIN)/python -m validation --measurements measurements/later \
		--markdown docs/accuracy-later.md --plot docs/accuracy-later.svg
	$(BIN)/python -m benchmarks.headline --markdown docs/headline.md
	$(BIN)/python -m validation.fit --page docs/curves.md
	$(BIN)/python -m benchmarks.answers README.md
	$(BIN)/python -m validation.quality --markdown docs/quality.md --write

certificate: $(VENV)/validation
	$(BIN)/python -m validation.certify \
		--markdown docs/accuracy-certificate.md --plot docs/accuracy-certificate.svg

schema: $(VENV)/light
	$(BIN)/python -c "from planner import plan_file as p; p.SCHEMA.write_text(p.schema_text())"

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile
