# Needs make and Python 3.11 or newer; everything else is fetched, pinned by version and hash.

PYTHON ?= python3
WORLDS ?= 1000
SCALE ?= 1
SEED ?= 0
DATABASE ?= sqlite
N ?= 1000000
UV := .tools/bin/uv
BIN := .venv/bin
# The second stamp is written last, so an interrupted setup is taken up again.
TOOLS := .tools/.done
VENV := .venv/.done

export UV_PYTHON_DOWNLOADS := never
# The certificates of this machine, a company's own among them, as other programs here use them.
export UV_SYSTEM_CERTS := true

.DEFAULT_GOAL := help
.PHONY: help setup demo test sim faults mutants bench bench-audit check lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV) ## Install the bot and its tools into .venv

demo: $(VENV) ## See a cancel from /cancel to the summary, without Slack or Upbit accounts
	@$(BIN)/bot demo

test: $(VENV) ## Run the tests and measure the branches they take
	$(BIN)/pytest --cov --cov-report=term --cov-fail-under=95

sim: $(VENV) ## Play WORLDS random histories from SEED on, and judge them
	@PYTHONPATH=tests $(BIN)/python -m faults.simulate --worlds $(WORLDS) --seed $(SEED) --database $(DATABASE)

faults: $(VENV) ## Play every experiment with faults, SCALE times as large, with the dice of SEED
	@PYTHONPATH=tests $(BIN)/python -m faults.run --scale $(SCALE) --seed $(SEED)

mutants: $(VENV) ## Plant bugs, one at a time, and show that the tests notice
	@$(BIN)/python tests/faults/mutants.py

bench: $(VENV) ## Measure the bot beside baselines, and print how each figure compares
	@$(UV) sync --quiet --frozen --inexact --all-extras --group bench --python .tools/bin/python
	@$(BIN)/python bench/main.py

bench-audit: $(VENV) ## Measure the audit's commands on N events in SQLite and PostgreSQL
	@$(BIN)/python bench/audit_bulk.py $(N)

check: $(VENV) ## Lint, check types and who imports whom, lint the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

lock: $(TOOLS) ## Write uv.lock anew after a change of pyproject.toml
	$(UV) lock

clean: ## Remove everything that make has made
	rm -rf .venv .tools dist build .coverage .coverage.* .*_cache .hypothesis
	find bot migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(TOOLS): .ci/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is missing or older than 3.11: install a newer one, or name one (make setup PYTHON=python3.13)'; \
		exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo '$(PYTHON) comes without venv: install it (Debian and Ubuntu: python3-venv)'; exit 1; } >&2
	@rm -rf .tools
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
		--require-hashes -r .ci/uv.txt
	@touch $@

$(VENV): $(TOOLS) pyproject.toml uv.lock
	$(UV) sync --quiet --frozen --all-extras --python .tools/bin/python
	@touch $@
