# gpuboot's workshop. On a fresh Debian 12 machine, as root, with git, make and python3, every
# target here sets up what it needs by itself: Debian packages with the machine's own apt (only
# what is missing), Python packages in .cache/venv, trees and archives in .cache. Deleting .cache
# costs nothing but the minutes to build it again.

SHELL := /bin/sh
SCENARIO ?= default
KEEP ?=
SEED ?=
KILLS ?= 50
AGENTS ?= 200
# Which inputs `make test-long` invents: the same ones always, or with PROFILE=search others.
PROFILE ?= long
VENV := .cache/venv/bin
CODE := gpuboot packaging tests
READY := python3 -m tests.rehearsal.machine
REHEARSE := $(VENV)/python -m tests.rehearsal

# systemd-analyze wants every program and every unit to be there, so gpuboot's own program, which is
# not installed on a developer's machine, becomes /bin/true, and the drop-in gets RKE2's unit.
VERIFY_UNITS = units=$$(mktemp -d) && trap 'rm -rf "$$units"' EXIT && \
	cp -r systemd/*.service systemd/*.path systemd/*.timer systemd/*.d "$$units" && \
	printf '[Service]\nExecStart=/bin/true\n' > "$$units/rke2-agent.service" && \
	sed -i 's,/usr/bin/gpuboot,/bin/true,' "$$units"/*.service && \
	SYSTEMD_UNIT_PATH="$$units:" systemd-analyze verify --man=no "$$units"/*.service

export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help rehearsal shell rehearsal-all torture core deb deb-test docs lint unit test test-long \
	test-vm herd bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

rehearsal: ## Boot a throw-away node and watch it join [SCENARIO=name-or-/path/to/folder] [KEEP=1]
	@$(READY) rehearsal
	@$(REHEARSE) run '$(SCENARIO)' $(if $(KEEP),--keep)

shell: ## Open a root shell in the node that `make rehearsal KEEP=1` has left
	@$(REHEARSE) shell

rehearsal-all: ## Rehearse every scenario, two at a time, and print a table
	@$(READY) rehearsal
	@$(REHEARSE) all

torture: ## Kill nodes at random instants; all must end like an uncut one [SEED=n] [KILLS=50]
	@$(READY) rehearsal
	@$(REHEARSE) torture --kills '$(KILLS)' $(if $(SEED),--seed '$(SEED)')

core: ## Rehearse the scenarios that `make test` runs
	@$(READY) rehearsal
	@$(REHEARSE) core

deb: ## Build gpuboot's Debian package into build/
	@$(READY) deb
	@mkdir -p build
	packaging/build-deb build

docs: ## Write docs/errors.md anew, from the catalogue of codes
	@$(READY) python
	made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && \
	$(VENV)/python packaging/man.py "$$made" && cp "$$made/errors.md" docs/errors.md

lint: ## Check style, types, spelling, shell scripts and units
	@$(READY) lint
	$(VENV)/ruff check $(CODE)
	$(VENV)/ruff format --check $(CODE)
	$(VENV)/mypy
	$(VENV)/codespell --skip './.*,./build' --ignore-words-list fpr,lables,te,durning,ect,parm
	shellcheck $$(grep -rlIE '^#! ?/bin/(ba|da)?sh' --exclude-dir=.git --exclude-dir=.cache --exclude-dir=build .)
	@echo 'systemd-analyze verify systemd/*.service'; $(VERIFY_UNITS)

unit: ## Run the unit and model tests; needs no root
	@$(READY) python
	$(VENV)/python -m pytest -q -n 2 --dist worksteal tests/unit tests/model

deb-test: ## Build, check, install and remove the package; bad sources for apt; promtool
	@$(READY) test
	$(VENV)/python -m pytest -q tests/test_packaging.py tests/test_real_apt.py \
		tests/test_monitoring.py

test: ## Everything a change must pass: lint, unit, model, packaging, core scenarios
	@$(READY) test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory deb-test
	@$(MAKE) --no-print-directory core

test-long: ## Cut the power again and again, refuse every write, read 65,000 files; the herd; the VM
	@$(READY) python
	$(VENV)/python -m pytest -q -n 2 --dist worksteal --hypothesis-profile $(PROFILE) -m long \
		tests/model tests/unit
	$(VENV)/python -m pytest -q -n 2 --dist worksteal --hypothesis-profile $(PROFILE) \
		tests/unit/test_checkpoint.py
	@$(MAKE) --no-print-directory herd
	@$(MAKE) --no-print-directory test-vm

test-vm: ## Boot a virtual machine with Debian's kernel and an emulated T4; ten minutes
	@$(READY) vm
	@$(VENV)/python -m tests.vm

herd: ## Let a pool boot in one instant before a supervisor that is soon full [AGENTS=200]
	@$(READY) python
	@$(VENV)/python -m tests.herd --agents '$(AGENTS)'

bench: ## Measure gpuboot beside cloud-init on a node
	@$(READY) rehearsal
	$(VENV)/python -m tests.bench

clean: ## Switch off a kept node; remove everything built
	@if [ -x $(VENV)/python ]; then $(REHEARSE) stop; fi
	rm -rf .cache build .mypy_cache .ruff_cache .pytest_cache .hypothesis
