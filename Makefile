# make demo   from a target and a budget to a trained model, beside grid and TPE: results/demo/plan/page.html, report.html
# make test   everything CI checks: format, lint, types, contracts, tests without long sweeps
# make test-all  the long sweeps too
# make lint   the first four only
# make study  one run against tuned schedules and every rival: hours, resumable; make study SHORT=--short in minutes
# make gain   what a search costs: ENGINE=optuna or ray; DATA=DIR races, without it the kept searches are printed
# make ladder  MetaOptimize and schedule pilots on text-lm, six widths × three token counts: resumable; MINUTES=10
# make laws   how well laws predict published tables: DATA=DIR
# make gpu    the checks, the table and a short race on a GPU; without one it says what it would do
# make chaos  kill and damage everything that can be resumed or read: KILLS=200
# make bench  speed, as ratios taken in one run (keep the machine quiet)
# Each makes .venv when it is missing, and reinstalls only when the packaging files have changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGING := pyproject.toml constraints.txt
ENGINE ?= optuna
KILLS ?= 200

.PHONY: gpu demo test test-all lint study ladder gain laws chaos bench docs docs-versions clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python -m studies.demo

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/benchmarks -m "not sweep"

test-all: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/benchmarks

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

study: $(VENV)/.installed-dev
	$(BIN)/python -m studies.one_run --page results/study.html $(SHORT)

ladder: $(VENV)/.installed-dev
	$(BIN)/python -m studies.ladder $(if $(MINUTES),--minutes $(MINUTES))

gain: $(VENV)/.installed-dev
	$(BIN)/python -m studies.gain --engine $(ENGINE) $(if $(DATA),--data $(DATA),--report)

laws: $(VENV)/.installed-dev
	$(BIN)/python -m studies.laws --data $(or $(DATA),$(error DATA= the folder of published tables, see docs/studies/laws/README.md))

chaos: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/run.py --kills $(KILLS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,max,rounds -s

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site is in results/site/index.html"

# the site of every version tag, each from its own sources, in results/versions/
docs-versions: $(VENV)/.installed-dev
	$(BIN)/python docs/versions.py results/versions

# make gpu [PART=checks|speed|race|page]; on a machine where nothing can be installed: make gpu PYTHON=python3 INSTALL=no
INSTALL ?= yes
gpu: $(if $(filter no,$(INSTALL)),,$(VENV)/.installed-dev)
	PYTHONPATH=docs:. $(if $(filter no,$(INSTALL)),$(PYTHON),$(BIN)/python) -m studies.gpu $(PART)

clean:
	rm -rf $(VENV) results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "metaopt-hpo needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# the development environment holds everything the demo needs
$(VENV)/.installed-demo: $(PACKAGING) | $(VENV)/bin/python
	@test -e $(VENV)/.installed-dev -a ! $(VENV)/.installed-dev -ot pyproject.toml -a ! $(VENV)/.installed-dev -ot constraints.txt \
	  || $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[optuna,workloads]'
	@touch $@

$(VENV)/.installed-dev: $(PACKAGING) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
