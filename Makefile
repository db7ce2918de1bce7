# make setup      set up the environment, .venv
# make repro      set up, run the pipeline, print the table of Fréchet distances (smaller, without GPU: TORCH_INDEX=…)
# make test       set up, lint, run all tests        make test-fast   the quick tests
# make lint       ruff and mypy                      make clean       remove the environment
# make bench      time training and sampling beside other libraries (on a GPU: make bench DEVICE=cuda)

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# the address of another index, such as PyTorch's of wheels for CPUs, to take torch and torchvision from
TORCH_INDEX ?=
NEEDED_MB := $(if $(TORCH_INDEX),3000,9000)
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder  # each file in one process
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# DVC asks for the user's name, which a user without an entry in /etc/passwd (docker run --user) does not have
export LOGNAME := $(or $(LOGNAME),$(USER),$(firstword $(shell id -un 2>/dev/null || id -u)))

# an environment holds the path of its folder: it is made anew where that was moved or renamed
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
else ifneq ($(TORCH_INDEX),)
$(info make: $(VENV) is there and stays as it is; make clean first to take torch from $(TORCH_INDEX))
endif

.PHONY: setup repro test test-fast lint bench clean GIT

setup: $(READY)

repro: $(READY)
	@python -m tools.check --recipe .
	@if [ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1; then dvc config --local --unset core.no_scm 2>/dev/null || true; \
	else echo "make: no git repository here (an archive?): DVC runs without, but without experiments"; dvc config --local core.no_scm true; fi
	dvc repro
	dvc metrics show artifacts/metrics/*.json
	@echo 'All results are on one page, artifacts/report/report.html. To compare later runs with this one, and not with that of the authors:'
	@echo '    git commit -am "Run the pipeline here"'

test: GIT $(READY) lint
	python -m pytest $(WORKERS)

test-fast: GIT $(READY)
	python -m pytest $(WORKERS) -m "not slow"

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

bench: $(READY)
	python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,bench]"
	python -m bench $(if $(DEVICE),--device $(DEVICE))

GIT:
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || { echo "make: the tests need a git repository, which an archive is not: git init && git add . makes one" >&2; exit 1; }

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@if [ ! -d $(VENV)/lib ] && [ $$(df -Pm . | awk 'NR == 2 {print $$4}') -lt $(NEEDED_MB) ]; then echo "make: less than $(NEEDED_MB) MB of disk space are free here; PyTorch and its libraries need them" >&2; exit 1; fi
	@[ ! -s $(READY) ] || [ "$$(cat $(READY))" = "$(CURDIR)" ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@[ -z "$(TORCH_INDEX)" ] || python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --index-url "$(TORCH_INDEX)" torch torchvision
	python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@echo "$(CURDIR)" >$@
