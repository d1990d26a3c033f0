# `make` lists the targets. Everything runs in .venv, which `make setup` builds and keeps up to date.

PYTHON ?= python3
STUDY ?= params/demo.yaml
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup study test slurm-test bench gpu lab report lint clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) found; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv: about 6.4 GB with PyTorch, a minute or two on a fast connection"
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[test]' \
	  | awk '/^ *Downloading .*([0-9][0-9]\.[0-9] MB|GB)/ { sub(".*/", "", $$2); print "  downloading", $$2, $$3, $$4; fflush() } \
	         /^Installing collected/ { print "  installing"; fflush() }'
	@touch $@
	@echo "Ready. Next: make study, or activate it (source .venv/bin/activate) and run roar"

setup: $(VENV)/.ready ## Build or refresh .venv

study: setup ## Run the demo study and its report (or another: STUDY=params/x.yaml)
	@$(BIN)/roar run $(STUDY)
	@$(BIN)/roar report $(STUDY)

test: setup ## Run every test: package, notebooks, smoke study
	@$(BIN)/python -m pytest

slurm-test: setup ## Run the smoke study on a one-node SLURM on this machine (needs root and Debian's packages)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	@tests/slurm.sh

bench: setup ## Measure speed against plain baselines; prints tables
	@for file in $(filter-out benchmarks/gpu%,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

gpu: ## Measure everything on this machine's GPU in ten minutes (PYTHON=python3: use it as it is, no setup)
	@python=$(BIN)/python; \
	if [ "$(origin PYTHON)" != file ] && $(PYTHON) -c 'import torch' 2>/dev/null; then python=$(PYTHON); \
	else $(MAKE) --no-print-directory setup || exit 1; fi; \
	$$python benchmarks/gpu.py

lab: setup ## Open JupyterLab at the overview
	@$(BIN)/jupyter lab notebooks/00-overview.ipynb

report: setup ## Render a finished study to HTML (STUDY=params/x.yaml)
	@$(BIN)/roar report $(STUDY)

lint: setup ## Check style, and that notebooks are stripped
	@$(BIN)/ruff check .
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

clean: ## Remove .venv and caches; outputs/ stays
	@rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
