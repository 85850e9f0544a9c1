# The workbench from a fresh checkout, with nothing but make, pip and Python 3.11 or newer:
# `make explore` opens the dashboards, `make test` runs the tests. Both set up .venv first, once.

ifneq ($(origin PYTHON),undefined)
ASKED := $(PYTHON)
endif
PYTHON ?= python3
VENV   := .venv
EXTRAS := serve,notebooks,distributed,dev
TORCH  := 2.13.0

BIN        := $(VENV)/bin
READY      := $(VENV)/.ready
UNFINISHED := $(VENV)/.unfinished
COMPILED   := $(VENV)/.compiled
PIP        := $(BIN)/python -m pip --no-input --disable-pip-version-check
NOTEBOOKS   = $(wildcard notebooks/*.ipynb)

# .ready is written last and says which Python made the environment and for which folder. It is out
# of date when the lock or pyproject.toml is newer, and not ours to use when the folder was copied
# or moved, when another PYTHON is asked for, or when its Python is gone.
RECORD := $(strip $(shell test -x $(BIN)/python && cat $(READY) 2>/dev/null))
ifneq ($(RECORD),$(strip $(or $(ASKED),$(firstword $(RECORD))) $(CURDIR)))
FOREIGN := foreign
endif

# Bytecode is kept between the processes: compiling what one imports takes several seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help explore test fuzz device checkpoints lint format lock clean setup foreign

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

explore: setup ## open the dashboards on localhost (PORT=5006 ADDRESS=0.0.0.0 to choose where)
	@exec $(BIN)/workbench serve $(if $(PORT),--port $(PORT)) $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

test: setup ## run the whole test suite (ARGS='-k name' goes to pytest)
	@exec $(BIN)/python -m pytest $(ARGS)

# Each test is run RUNS times in a row; what draws nothing, once.
fuzz: setup ## run the tests RUNS times (20) under fresh seeds; SEED=k repeats one run
	@exec env WORKBENCH_FUZZ=$(or $(RUNS),$(if $(SEED),1,20)) $(if $(SEED),WORKBENCH_SEED=$(SEED)) \
	  $(BIN)/python -m pytest -m 'not browser and not house' --ignore=tests/browser \
	  --ignore=tests/test_notebooks.py --ignore=tests/test_studies_cluster.py $(ARGS)

# With the Python that has torch for the card: needs torch, numpy, scipy and xarray, no .venv.
device: ## on a machine with a graphics card: the same numbers as on the CPU, and how fast
	@exec $(PYTHON) benchmarks/device.py $(ARGS)

# Each goes on where it was interrupted; delete checkpoints/ to begin anew.
checkpoints: setup ## train every network that ships again, in checkpoints/ (an hour and a quarter)
	@set -e; mkdir -p checkpoints; \
	for file in data/checkpoints/*.yaml; do \
	  name=$$(basename $$file .yaml); \
	  $(BIN)/workbench train $$file --out checkpoints/$$name.safetensors; \
	done
	@echo 'They are in checkpoints/; copy those to data/checkpoints that are to ship.'

lint: setup ## check formatting, imports and notebooks
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(if $(NOTEBOOKS),$(BIN)/python -m nbstripout --verify $(NOTEBOOKS))
	$(BIN)/lint-imports --no-cache --no-logo

format: setup ## put right what lint would find, where a machine can
	-$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format
	$(if $(NOTEBOOKS),$(BIN)/python -m nbstripout $(NOTEBOOKS))

lock: setup ## pin the newest versions of everything in requirements.lock (TORCH=2.13.0 to choose)
	@set -e; \
	report=$$(mktemp); trap 'rm -f "$$report" "$$report.lock"' EXIT; \
	$(PIP) install --quiet --dry-run --ignore-installed --report "$$report" '.[all]' pip 'torch==$(TORCH)'; \
	{ \
	  echo '# The whole tree of a checkout, pinned. A constraints file:'; \
	  echo "#     pip install -c requirements.lock -e '.[all]'"; \
	  echo '# Made with pip --dry-run --report on Linux, by `make lock`, which remakes it.'; \
	  echo '# What torch itself pins for a graphics card (nvidia-*, cuda-*, triton) is left to torch.'; \
	  $(BIN)/python -c "$$LOCK" "$$report"; \
	} > "$$report.lock"; \
	cp "$$report.lock" requirements.lock

# name==version of all that pip would install, without the local part of a version (+cpu).
define LOCK
import json, re, sys
packages = [item["metadata"] for item in json.load(open(sys.argv[1]))["install"]]
names = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].split("+")[0] for p in packages}
for name, version in sorted(names.items()):
    if not re.match(r"nvidia-|cuda-|triton$$|diffusion-workbench$$", name):
        print(f"{name}=={version}")
endef
export LOCK

clean: ## remove the environment and everything else that was made here
	@if [ -e $(READY) ] || [ -e $(UNFINISHED) ]; then rm -rf $(VENV); fi
	rm -rf dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(COMPILED)

# Bytecode of all packages, once and on all cores: without it every start compiles what it imports,
# for good where PYTHONDONTWRITEBYTECODE is set. What a package's tests hold need not compile.
$(COMPILED): $(READY)
	@$(BIN)/python -m compileall -qq -j 0 -x '[/\\]tests?[/\\]' \
	  $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || true # templates
	@touch $@

# .unfinished holds the number of the process that installs, from before the first file is written
# until all is there; whoever finds it later starts again from nothing. An update that pip refuses
# (no network, say) leaves the environment as it was, to be updated the next time.
$(READY): pyproject.toml requirements.lock $(FOREIGN)
	@set -e; \
	stop() { printf '\n%s\n' "$$*" >&2; exit 1; }; \
	anew=; quiet=; \
	if [ -e $(UNFINISHED) ] && kill -0 "$$(cat $(UNFINISHED))" 2>/dev/null; then \
	  stop "Another make (process $$(cat $(UNFINISHED))) is installing into $(VENV): wait until it is done."; \
	elif [ -e $(UNFINISHED) ] || [ -z "$$(ls -A $(VENV) 2>/dev/null)" ]; then \
	  anew=yes; \
	elif ! [ -e $(READY) ]; then \
	  stop 'There is a $(VENV) that this Makefile did not make: move it away, or use another folder with VENV=.venv-make.'; \
	elif [ -n '$(FOREIGN)' ]; then \
	  anew=yes; \
	fi; \
	if [ "$$anew" ]; then \
	  version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
	    stop '$(PYTHON) was not found or does not run: install Python 3.11 or newer, or name one, as in make test PYTHON=python3.12.'; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    stop "$(PYTHON) is Python $$version and the workbench needs 3.11 or newer: install one and name it, as in make test PYTHON=python3.12."; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    stop "$(PYTHON) cannot make virtual environments because venv or ensurepip is missing: install it (on Debian and Ubuntu: apt install python$$version-venv)."; \
	  rm -rf $(VENV); mkdir -p $(VENV); \
	fi; \
	echo $$$$ > $(UNFINISHED); \
	echo 'Installing the locked packages into $(VENV); the first time takes a few minutes.'; \
	[ -z "$$anew" ] || $(PYTHON) -m venv $(VENV); \
	[ -t 1 ] || quiet=--quiet; \
	{ $(PIP) install --quiet --upgrade -c requirements.lock pip && \
	  $(PIP) install $$quiet --no-compile -c requirements.lock -e '.[$(EXTRAS)]'; } 2> $(VENV)/errors.txt || { \
	  [ "$$anew" ] || rm -f $(UNFINISHED); \
	  if grep -qiE 'connection (broken|aborted)|name resolution|timed out|unreachable|ProxyError' $(VENV)/errors.txt; then \
	    stop 'The packages could not be fetched: check the network (PIP_INDEX_URL names a mirror), then run make again; details are in $(VENV)/errors.txt.'; \
	  fi; \
	  cat $(VENV)/errors.txt >&2; \
	  stop 'The packages could not be installed, for the reason above: mend it, then run make again.'; }; \
	echo '$(firstword $(ASKED) $(if $(FOREIGN),,$(RECORD)) $(PYTHON)) $(CURDIR)' > $(READY); \
	rm -f $(UNFINISHED) $(VENV)/errors.txt
