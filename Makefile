# `make` lists the targets. Each target creates what it needs. Requires make and Python 3.11 or later with pip.

# The first Python that starts, is recent enough and has pip. To use another one: make PYTHON=/path/to/python …
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, pip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
UV ?= uv

IDENTITY = 'import sys; print(sys.base_prefix, sys.version.split()[0])'

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
# The tests start many processes. Without the cache of bytecode, each of them compiles all modules again.
PYTEST = PYTHONDONTWRITEBYTECODE= $(RUN) pytest -n auto
AUDIT := .venv-audit
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
PIP_INSTALL = "$(PYTHON)" -m pip --python $(BIN)/python --disable-pip-version-check -qq install
UV_COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--quiet

.DEFAULT_GOAL := help
.PHONY: help $(VENV) demo serve test test-slow requests coverage benchmark benchmark-api chaos client check format format-check lint types imports security audit sbom lock upgrade clean FORCE
.DELETE_ON_ERROR:

help: ## List the targets
	@sed -n 's/^\([a-z.$$()A-Z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
		sed 's/^$$(VENV)/.venv/' | while IFS="$$(printf '\t')" read -r target meaning; do \
		printf '  make %-14s %s\n' "$$target" "$$meaning"; done

$(VENV): $(INSTALLED) ## Create or update .venv from the lock files

demo: $(INSTALLED) ## Create and run flows on a temporary server, and check the results
	@$(BIN)/bloxserver demo

serve: $(INSTALLED) ## Run a development server on 127.0.0.1:8000
	@$(BIN)/bloxserver serve --host 127.0.0.1 --port 8000

test: $(INSTALLED) ## Run the tests on SQLite and PostgreSQL, except those in tests/slow
	@$(PYTEST) --dist worksteal --ignore tests/slow

test-slow: $(INSTALLED) ## Run the tests in tests/slow, which start processes
	@$(PYTEST) --dist worksteal tests/slow

requests: $(INSTALLED) ## Send 5,800 generated requests to a server on each database; takes five minutes
	@$(PYTEST) tests/schemathesis/all_phases.py

coverage: $(INSTALLED) ## Run make test and list uncovered lines; needs Python 3.12 or later
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "coverage needs Python 3.12 or later: make PYTHON=python3.13 VENV=.venv-coverage coverage" >&2; exit 1; }
	@$(PYTEST) --dist worksteal --ignore tests/slow --cov --cov-report=term

benchmark: $(INSTALLED) ## Run the benchmarks on SQLite and PostgreSQL, and print one table; takes about ten minutes
	@$(RUN) benchmarks all

benchmark-api: $(INSTALLED) ## Measure the API against a bare server, and write the results and their tables; takes 40 minutes
	@$(RUN) benchmarks api --save .

chaos: $(INSTALLED) ## Kill, freeze, disconnect and restart processes, and check the results; takes half an hour
	@$(RUN) tests.chaos all

client: $(INSTALLED) ## Generate a TypeScript client from the OpenAPI document and compile it; needs node and npm
	@PYTHON=$(BIN)/python scripts/check-openapi-client.sh

check: format-check lint types imports security test ## Run everything that a change must pass, except the slow tests

format: $(INSTALLED) ## Format the code, and apply fixes of the linter
	@$(RUN) ruff check --fix --quiet .
	@$(RUN) ruff format .

format-check: $(INSTALLED) ## Check the formatting
	@$(RUN) ruff format --check .

lint: $(INSTALLED) ## Run the linter
	@$(RUN) ruff check .

types: $(INSTALLED) ## Check the types
	@$(RUN) mypy

imports: $(INSTALLED) ## Check the import contracts
	@$(BIN)/lint-imports

security: $(INSTALLED) ## Search the code for insecure calls
	@$(BIN)/bandit --quiet --severity-level medium --configfile pyproject.toml --recursive bloxserver

audit: $(AUDIT)/.installed ## Search the locked packages for known vulnerabilities; fails if one cannot be checked
	@$(AUDIT)/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

sbom: $(AUDIT)/.installed ## Write sbom.json, the locked packages in the format CycloneDX
	@$(AUDIT)/bin/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-format JSON --output-file sbom.json

$(AUDIT)/.installed: requirements-audit.lock
	@"$(PYTHON)" -m venv --without-pip --clear $(AUDIT)
	@"$(PYTHON)" -m pip --python $(AUDIT)/bin/python --disable-pip-version-check -qq install --require-hashes --no-deps --requirement $<
	@touch $@

lock: ## Update the lock files for pyproject.toml, keeping locked versions; needs uv
	@$(UV_COMPILE) pyproject.toml --extra tracing --output-file requirements.lock
	@$(UV_COMPILE) pyproject.toml --extra tracing --group dev --output-file requirements-dev.lock
	@$(UV_COMPILE) --group build --output-file requirements-build.lock
	@$(UV_COMPILE) --group audit --output-file requirements-audit.lock

upgrade: ## Update the lock files to the newest versions; needs uv
	@$(MAKE) --no-print-directory lock UV_COMPILE='$(UV_COMPILE) --upgrade'

clean: ## Remove .venv, caches and build output; databases are kept
	rm -rf $(VENV) .venv-coverage $(AUDIT) sbom.json dist build htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two lines of .locked are the directory and the Python of the environment. An environment works only in its
# directory, so it is recreated in a copy of the directory, and if PYTHON names another Python.
ifneq ($(shell sed -n 1p $(LOCKED) 2>/dev/null),$(CURDIR))
$(LOCKED): FORCE
else ifneq ($(origin PYTHON),file)
ifneq ($(shell sed -n 2p $(LOCKED)),$(shell "$(PYTHON)" -c $(IDENTITY) 2>/dev/null))
$(LOCKED): FORCE
endif
endif

$(LOCKED): requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later with pip was not found; set one with make PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c '' || { echo "$(PYTHON) does not start" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or later" >&2; exit 1; }
	@"$(PYTHON)" -m pip --version >/dev/null || { echo "$(PYTHON) has no pip" >&2; exit 1; }
	@echo "creating $(VENV) with $$("$(PYTHON)" --version) from $<"
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv --without-pip $(VENV)
	@$(PIP_INSTALL) --require-hashes --no-deps --requirement $<
	@echo "$(CURDIR)" > $@
	@"$(PYTHON)" -c $(IDENTITY) >> $@

$(INSTALLED): $(LOCKED) pyproject.toml
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
