# Two commands matter: `make demo` and `make test`. Both make .venv when it is missing or out of date.
# Needs Python >= 3.11, make and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
JOBS ?= 4
SOURCES := spec proto studies content serving scheduler agent training client tests benchmarks examples scripts __init__.py

# Byte code is kept: a start of ours must not compile our own modules each time.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help venv demo faults test test-launchers test-gpu check format proto statements packages vm-cgroup chaos bench clean

help:  ## Show the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## Make .venv with everything that development needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Paceline needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (minutes on the first run, most of it torch) ..."
	@$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Train digits on two local agents, kill a worker on the way, see it resume
	@$(BIN)/python scripts/demo.py

faults: $(STAMP)  ## One run that meets five different faults, its timeline and its ledger
	@$(BIN)/python scripts/faults.py

test: check packages  ## All checks and all tests
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not serial"
	$(BIN)/python -m pytest -q -m "serial"

test-launchers: $(STAMP)  ## What needs DeepSpeed, Ray, Transformers or Lightning (more in .venv than make test wants)
	@$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[launchers,serve-ray]'
	$(BIN)/python -m pytest -q tests/launchers tests/serving/test_ray_engine.py

test-gpu: $(STAMP)  ## What needs an NVIDIA GPU, and a torch in .venv that was built for it; make test skips it elsewhere
	$(BIN)/python -m pytest tests/gpu

check: $(STAMP)  ## Format, lint, types, layers, fresh stubs and statements
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/protoc.sh --check
	$(BIN)/python scripts/statements.py --check

format: $(STAMP)  ## Rewrite the code in the one format
	$(BIN)/ruff check --fix-only -q $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(STAMP)  ## Make proto/generated anew from proto/v1
	scripts/protoc.sh

statements: $(STAMP)  ## Make scheduler/store/compiled.py anew from statements.py
	$(BIN)/python scripts/statements.py

packages: $(STAMP)  ## Install the Debian packages that some tests use (as root; else says what is missing)
	@scripts/apt.sh

vm-cgroup: $(STAMP)  ## The limits by cgroup v2, in a virtual machine that lends controllers (not part of make test)
	scripts/cgroup_vm.sh

chaos: $(STAMP)  ## The long fault rounds (not part of make test)
	$(BIN)/python -m pytest -q tests/chaos --rounds 100

bench-%: $(STAMP)  ## One benchmark, e.g. make bench-launch
	$(BIN)/python -m benchmarks.$* $(ARGS)

bench: $(STAMP)  ## All benchmarks
	for name in launch restart jobs recovery logs checkpoint peer_memory beat goodput packing replay decide reclaim scale storage sweep code serving; do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

clean:  ## Remove .venv and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
