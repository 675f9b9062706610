PYTHON ?= python3
VENV   ?= .venv
AUDIO  ?=
SEEDS  ?= 500
FIRST_SEED ?= 0
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first interpreter that is new enough; empty when there is none.
NEW_ENOUGH = $(shell for p in $(PYTHON) python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo up test test-torch simulate test-faults soak check lint format types imports schemas schemas-check bench bench-engine bench-inference models compose-up compose-down test-compose clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## run the speech workflow end to end: make demo AUDIO=hello.wav
	$(BIN)/clawdbot demo $(if $(AUDIO),--audio "$(AUDIO)")

up: $(STAMP) ## start nats-server and every service on this machine
	$(BIN)/clawdbot up

test: $(STAMP) ## every test but the slow ones, under ten minutes
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not docker and not browser" $(ARGS)

test-torch: $(STAMP) ## what needs torch and the converter: installs both, then runs those tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,models,convert,torch]'
	$(BIN)/python -m pytest tests/unit/engines tests/unit/clawdbot/test_conversion.py tests/guides $(ARGS)

simulate: $(STAMP) ## seeded simulation: make simulate SEEDS=10000 FIRST_SEED=0
	$(BIN)/python -m tests.support.sim --first-seed $(FIRST_SEED) --seeds $(SEEDS) $(ARGS)

test-faults: $(STAMP) ## seeded simulation, killed processes, power cuts, damaged logs: all of it
	$(BIN)/python -m pytest tests/simulation tests/faults --seeds $(SEEDS) $(ARGS)

soak: $(STAMP) ## the simulation over ever new seeds, until one fails or you stop it
	seed=$(FIRST_SEED); while $(MAKE) --no-print-directory simulate FIRST_SEED=$$seed SEEDS=1000; do seed=$$((seed + 1000)); done

check: lint types imports schemas-check test ## what CI calls

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP) ## ruff: mend what can be mended
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

schemas: $(STAMP) ## regenerate the committed JSON Schema, AsyncAPI and OpenAPI files
	$(BIN)/python -m services.contracts

schemas-check: $(STAMP) ## the committed files equal the generated ones
	$(BIN)/python -m services.contracts --check

bench: $(STAMP) ## named scenarios, JSON lines out
	$(BIN)/python -m bench $(ARGS)

bench-engine: $(STAMP) ## the same workflow by clawdbot and by other engines, side by side
	$(BIN)/python -m bench.rivals $(ARGS)

bench-inference: $(STAMP) ## inference over HTTP beside onnxruntime in process, and beside other servers
	$(BIN)/python -m bench.inference
	$(BIN)/python -m bench.serving $(ARGS)

models: $(STAMP) ## train the small models that ship with clawdbot
	$(BIN)/python -m models.train

compose-up: ## the mesh in Docker, on port 8080
	docker compose -f deploy/compose/compose.yaml up --build --wait

compose-down: ## stop the mesh in Docker; keeps its data
	docker compose -f deploy/compose/compose.yaml down

test-compose: $(STAMP) ## the tests that need Docker
	$(BIN)/python -m pytest -m docker $(ARGS)

clean: ## remove what was built; keeps your data
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml
	@test -n "$(NEW_ENOUGH)" || { echo "clawdbot needs Python 3.11 or newer; $(PYTHON) is not. Say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(NEW_ENOUGH) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(NEW_ENOUGH) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(NEW_ENOUGH) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,models]'
	@touch $@
