# Every target sets up what it needs in .venv and says so; a second run starts at once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# PORT and SEED of the sample world, more arguments for pytest: make demo PORT=9000, make test ARGS="-k pricing"
PORT ?= 8000
SEED ?=
ARGS ?=
WORKERS ?= 2

# Said while packages arrive: one line for every twenty instead of one for each. Errors are shown; pip's warnings are
# about the machine's own configuration of pip.
define install
	total=$$(grep -c '^[a-z0-9][a-z0-9._-]*==' $(1)); \
	echo "[2/3] installing $$total packages from $(1) (about a minute the first time)"; \
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement $(1) \
		2> >(grep -v '^WARNING: ' >&2) | awk -v total=$$total '/^(Collecting|Processing|Requirement already)/ { if (++n % 20 == 0) { print "      " n " of " total; fflush() } } /^Installing/ { print "      putting them in place"; fflush() }'; \
	echo "[3/3] installing meterbridge itself"; \
	$(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
endef

.PHONY: help
help: ## this list
	@echo "meterbridge: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/.installed ## run the whole service with the sample world on http://127.0.0.1:8000
	@exec $(BIN)/meterbridge demo --port $(PORT) $(if $(SEED),--seed $(SEED))

.PHONY: test
test: .venv/.installed-dev ## run the tests; names what this machine cannot run, and why
	@exec $(BIN)/python -m pytest -m "not walk" --numprocesses $(WORKERS) --dist worksteal $(ARGS)

.PHONY: walks
walks: .venv/.installed-dev ## run the long ones: kills, faults and virtual days through started services, pages in a browser, published clients
	@exec $(BIN)/python -m pytest -m walk --numprocesses $(WORKERS) --dist worksteal $(ARGS)

.PHONY: check
check: .venv/.installed-dev ## ruff, mypy --strict, import-linter
	@echo "ruff: rules"; $(BIN)/ruff check .
	@echo "ruff: format"; $(BIN)/ruff format --check .
	@echo "mypy --strict"; $(BIN)/mypy
	@echo "import-linter"; $(BIN)/lint-imports --no-logo

.PHONY: bench
bench: .venv/.installed-dev ## measure how fast it is; prints figures, fails on none
	@exec $(BIN)/python -m tests.bench $(ARGS)

.PHONY: lock
lock: .venv/.installed-dev ## resolve the dependencies anew into the lock files (some minutes)
	@# On 3.11: what it resolves to also serves the later versions, not the other way round.
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make lock needs a .venv made with Python 3.11: make clean lock PYTHON=python3.11"; exit 1; }
	@echo "[1/2] requirements.lock"; $(BIN)/pip-compile $(LOCK_OPTIONS) --output-file requirements.lock pyproject.toml
	@echo "[2/2] requirements-dev.lock"; $(BIN)/pip-compile $(LOCK_OPTIONS) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

LOCK_OPTIONS := --quiet --upgrade --generate-hashes --all-build-deps --allow-unsafe --strip-extras \
	--no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.PHONY: clean
clean: ## remove .venv, the sample world and everything else that can be made again
	rm -rf .venv .demo build dist ./*.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@python="$(PYTHON)"; \
	for candidate in python3 python3.13 python3.12 python3.11; do \
		[ -n "$$python" ] && break; \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; fi; \
	done; \
	[ -n "$$python" ] || { echo "meterbridge needs Python 3.11 or newer and found none; on Debian 12: apt-get install python3 python3-venv" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "$$python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	echo "[1/3] making .venv with $$("$$python" --version)"; \
	"$$python" -m venv --clear .venv
	@touch $@

.venv/.installed: .venv/.made requirements.lock pyproject.toml
	@$(call install,requirements.lock)
	@touch $@

# Holds everything of the other as well.
.venv/.installed-dev: .venv/.made requirements-dev.lock pyproject.toml
	@$(call install,requirements-dev.lock)
	@touch $@ .venv/.installed
