# llm.cluster: every target does the set-up it needs. The two to know: make demo, make test.
.DEFAULT_GOAL := help
.PHONY: help demo demo-down check lint unit lua chaos bench test reference lock build clean

VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.run ## Start three bare hosts and a balancer here, make them a cluster, ask it a question
	@began=$$(date +%s); ansible-playbook -i inventories/demo playbooks/demo_up.yml \
	    && echo "The demo took $$(($$(date +%s) - began)) seconds to come up."

demo-down: $(VENV)/.run ## Remove the demo
	@ansible-playbook -i inventories/demo playbooks/demo_down.yml

check: $(VENV)/.test ## Lint, unit and Lua tests: what to run before each commit
	@python tests/run.py lint unit lua

lint: $(VENV)/.test ## All linters
	@python tests/run.py lint

unit: $(VENV)/.test ## Unit tests of the Python code
	@python tests/run.py unit

lua: $(VENV)/.test ## Lua: linter, pure files under busted, the rest in a real nginx
	@python tests/run.py lua balancer

chaos: $(VENV)/.test ## Faults and figures at full length (about 45 minutes); make test has a short form
	@CHAOS=full python tests/run.py chaos

bench: $(VENV)/.test ## The balancer beside others (10 minutes); FULL=1: everything (hours; goes on after a stop)
	@PYTHONPATH=tests python -m bench $(if $(FULL),full,short)

test: $(VENV)/.test ## Everything: linters, unit, Lua, roles under Molecule, the demo cluster end to end
	@python tests/run.py all

reference: $(VENV)/.test ## Write docs/reference.md and the commands in docs/cli.md anew
	@python docs/generate_reference.py
	@PYTHONPATH=cli python docs/generate_cli.py

build: $(VENV)/.test ## The collection's tarball, and the wheel of llm cluster, in .build/
	@ansible-galaxy collection build --force --output-path .build
	@cd cli && python -m hatchling build -t wheel -d ../.build

lock: $(VENV)/.test ## Write tests/constraints.txt anew from the ranges in pyproject.toml
	@tests/prepare lock

clean: ## Remove the virtual environment and build results
	@rm -rf $(VENV) .build

# The stamps change when what they install changes.
$(VENV)/.run: pyproject.toml tests/constraints.txt tests/prepare
	@tests/prepare run

$(VENV)/.test: pyproject.toml tests/constraints.txt tests/prepare
	@tests/prepare test
