# `make help` lists the commands. Everything runs in one virtual environment, .venv, made on first use.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= pocket
# The ordinary torch for Linux brings CUDA's libraries.
NEEDED_GIB ?= $(if $(filter Darwin,$(shell uname))$(findstring whl/cpu,$(PIP_EXTRA_INDEX_URL)),4,9)
REQUIREMENTS ?= requirements.txt
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_DISABLE_TELEMETRY ?= 1
BIN := $(VENV)/bin

.PHONY: help setup run train test quick soak lint latest lab bench device-check figures slides learner site grade readme clean

help:  ## this list, with how long each takes
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':[^#]*## *' '{printf "  make %-12s %s\n", $$1, $$2}'

# Installs anew only when the requirements change; a failed installation leaves no mark and is tried again.
$(VENV)/installed: $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "The course needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] > (3, 14))' \
	  || echo "The course is tested on Python 3.11 to 3.14; '$(PYTHON)' is newer. Should a library not install, name another: make PYTHON=python3.14 ..."
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "This Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv) and try again."; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4 / 1048576)}'); [ "$$free" -ge $(NEEDED_GIB) ] \
	  || { echo "The installation needs $(NEEDED_GIB) GiB of free space here, $$free GiB are left; free some and try again. The torch without CUDA needs less: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make ..."; exit 1; }
	@echo "setting up $(VENV) (a few minutes, once)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) 2>$(VENV)/pip.log \
	  || { grep -v WARNING $(VENV)/pip.log | tail -5; echo "The installation failed; the lines above say why. Check the network and run the same command again."; exit 1; }
	@touch $@

# An environment can be the one of another clone, whose code it would run: it can be lent, but is never re-pointed to this one.
PLACE := python -c 'import importlib.util, os; found = importlib.util.find_spec("finetuning"); print(os.path.realpath(found.origin) if found else "")'
setup:  ## set up .venv (2-5 minutes, once; the other commands do it by themselves)
	@[ ! -x $(BIN)/python ] || case "$$($(BIN)/$(PLACE))" in ""|"$(realpath .)"/*) ;; \
	  *) echo "$(VENV) runs the course of another folder, $$($(BIN)/$(PLACE)). Leave VENV= out, or lend it: PYTHONPATH=$(realpath .)/src make ..."; exit 1;; esac
	@place="$$([ ! -x $(BIN)/python ] || env -u PYTHONPATH $(BIN)/$(PLACE))"; case "$$place" in \
	  ""|"$(realpath .)"/*) $(MAKE) --silent --no-print-directory $(VENV)/installed;; \
	  *) echo "$(VENV) is lent by another folder: nothing is installed into it";; esac

# Names of files and columns may hold anything: they go through the environment, where neither make nor the shell reads them.
unexport REVIEWS BASE_MODEL TEXT LABEL LABELS CONFIG FOLDER
export GIVEN_REVIEWS := $(value REVIEWS)
export GIVEN_BASE_MODEL := $(value BASE_MODEL)
export GIVEN_TEXT := $(value TEXT)
export GIVEN_LABEL := $(value LABEL)
export GIVEN_LABELS := $(value LABELS)
export GIVEN_CONFIG := $(value CONFIG)
export GIVEN_FOLDER := $(value FOLDER)
SOURCES := --profile="$(PROFILE)" --reviews="$$GIVEN_REVIEWS" --base-model="$$GIVEN_BASE_MODEL"

run: setup  ## run the whole course headless (17 minutes on 2 cores, less where bfloat16 is fast; PROFILE= REVIEWS= TEXT= LABEL= LABELS= RATING= BASE_MODEL= LIMIT= SEED= RUN= LESSONS= FRESH=1)
	@$(BIN)/python -m finetuning run $(SOURCES) --text="$$GIVEN_TEXT" --label="$$GIVEN_LABEL" --labels="$$GIVEN_LABELS" --rating="$(RATING)" \
	  $(if $(LIMIT),--limit "$(LIMIT)") $(if $(SEED),--seed "$(SEED)") $(if $(RUN),--name "$(RUN)") $(if $(LESSONS),--lessons "$(LESSONS)") $(if $(FRESH),--fresh)

train: setup  ## one training from a file like src/finetuning/assets/launch/train.yaml (2 minutes or days; CONFIG= PROCESSES= FRESH=1)
	@$(BIN)/python -m finetuning train $(if $(PROCESSES),--processes "$(PROCESSES)") $(if $(FRESH),--fresh) -- "$$GIVEN_CONFIG"

# Two workers with a thread each, one of them busy with the course itself most of the time; what measures the clock runs alone after them.
PYTEST := python -m pytest --durations 10
SHARED := OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) --numprocesses 2 --dist loadfile --no-loadscope-reorder -m

test: lint  ## all that CI runs: lint, unit tests, the whole course (28 to 35 minutes on 2 cores, less where bfloat16 is fast)
	@$(SHARED) "not soak and not alone"
	@$(BIN)/$(PYTEST) -m "alone and not soak"

quick: lint  ## lint and unit tests, for the edit loop (3 to 4 minutes)
	@$(SHARED) "not soak and not slow and not alone"
	@$(BIN)/$(PYTEST) -m "alone and not soak and not slow"

# What drives a browser there, 50 MB that no learner needs; like the rest it is not installed into a lent environment.
BROWSER := playwright==1.65.2 axe-playwright-python==0.1.8
soak: setup  ## what takes long and seldom breaks: kills, full width, real reviews, rebuilds, memory, the bench (90-120 minutes)
	@case "$$(env -u PYTHONPATH $(BIN)/$(PLACE))" in "$(realpath .)"/*) \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $(BROWSER);; esac
	@$(BIN)/$(PYTEST) -m soak

# Each of them is silent when all is well.
lint: setup  ## style, types, the direction of imports, spelling, links, and no output in notebooks (15 seconds)
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@found=$$($(BIN)/lint-imports --no-logo --no-cache) || { echo "$$found"; exit 1; }
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb
	@$(BIN)/codespell
	@$(BIN)/python tests/links.py

# A second environment, made anew each time: what pip would install today, were nothing pinned.
latest:  ## make test on the newest version of every library, in build/latest (30 to 40 minutes)
	@rm -rf build/latest && mkdir -p build && sed 's/==.*//' requirements.txt > build/requirements.txt
	@$(MAKE) --no-print-directory test VENV=build/latest REQUIREMENTS=build/requirements.txt

bench: setup  ## measure the speed claims side by side, in runs/bench/ (12 minutes, FULL=1 with accuracies 40; PROFILE= REVIEWS= BASE_MODEL=)
	@$(BIN)/python -m authoring bench $(SOURCES) $(if $(FULL),--full)

device-check: setup  ## what this machine's GPUs make of the DeepSpeed lessons, for readers who have none (8 minutes; REVIEWS=)
	@$(BIN)/python -m authoring device-check --reviews="$$GIVEN_REVIEWS"

# With JupyterLab's defaults as a class needs them, from overrides.json in that folder: no question about news. A reader's own settings win.
lab: setup  ## open JupyterLab on the lessons (10 seconds)
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.app_settings_dir="$(CURDIR)/src/authoring/assets/lab" notebooks/00_welcome.ipynb

figures: setup  ## draw the figures in img/ anew (10 seconds)
	@$(BIN)/python -m authoring figures

slides: setup  ## the lessons as slides, in build/slides/, with the outputs of the last run (20 seconds; RUN=)
	@$(BIN)/python -m authoring slides $(or $(RUN),$(PROFILE))

learner: setup  ## copies for a class and a zip of each, in build/learner/ and build/instructor/ (10 seconds; RUN=)
	@$(BIN)/python -m authoring learner $(or $(RUN),$(PROFILE))

site: setup  ## report, lessons, glossary, slides and the learners' zip as one site, in build/site/, of the last run (60 seconds; RUN=)
	@$(BIN)/python -m authoring site $(or $(RUN),$(PROFILE))

grade: setup  ## what a class has done, from the files in FOLDER=, in build/grades.csv (a second)
	@$(BIN)/python -m authoring grade "$$GIVEN_FOLDER"

readme: setup  ## fill README.md with the numbers of the last make run (10 seconds)
	@$(BIN)/python -m authoring readme

clean:  ## remove runs/, build/ and caches; .venv stays (a second)
	@rm -rf runs build .pytest_cache .ruff_cache .mypy_cache
