# make run    creates .venv, runs the main notebooks, and ends with the path of the report
# make test   lints and runs every test, including the notebooks
# make check  lints, audits, and runs the fast tests of the core, in three minutes on two cores
# make audit  looks up the installed packages in PyPI's database of known vulnerabilities; fails if there is one
# make lab    opens the notebooks in JupyterLab
# make doctor checks the packages, and shows the versions, the GPU's driver, and the notebook kernels
# make docs   executes every notebook on RoadScenes and writes readable copies to docs/notebooks/, in about 15 minutes
# make gpu    checks and measures everything on a GPU within some minutes: make gpu GPU="--minutes 9 --out results/gpu"
# make clean  removes .venv and caches; data/ and results/ stay
#
# Any parameter of the main notebooks can be given: make run DATASET=roadscenes MAX_EPOCHS=5

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Command-line variables NAME=value, except those of make itself and of the environment
PARAMETERS := $(filter-out PYTHON=% VENV=% S2FPN_% PYTEST=% LAB=% GPU=% AUDIT=%,$(MAKEOVERRIDES))
# Extra words for pytest: make test PYTEST="-k metrics"
PYTEST ?=
PYTEST_2 := $(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 0
# Tests of the core
CHECKED := $(addprefix tests/,model data config workbench/test_parameters.py workbench/test_studies.py \
  $(patsubst %,test_%.py,layout notebooks losses metrics optim runs evaluate))
# Extra words for JupyterLab, on a machine without a screen: make lab LAB="--no-browser --port 8890"
LAB ?=
# Options of s2fpn_lib.benchmark.gpu
GPU ?=
# Options of pip-audit, for another database: make audit AUDIT="--vulnerability-service osv"
AUDIT ?=

# Silences a warning of the debugger at the start of each kernel
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: run test check lint audit lab doctor docs gpu clean
.DELETE_ON_ERROR:

run: $(INSTALLED)
	@$(PY) -m s2fpn_lib.workbench.pipeline $(PARAMETERS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	$(PYTEST_2) $(PYTEST)

check: lint audit
	$(PYTEST_2) -m "not slow" $(CHECKED) $(PYTEST)

# Without a connection to the database it says so and passes
audit: $(INSTALLED)
	$(PY) scripts/audit.py $(AUDIT)

# Reachable from this machine alone whatever the user's settings of Jupyter say, unless LAB has another --ip. The token is
# the one that Jupyter draws at each start; a token given here would be visible in the list of processes
lab: $(INSTALLED)
	$(PY) -m jupyter lab $(if $(filter --ip% --ServerApp.ip%,$(LAB)),,--ServerApp.ip=localhost) --LabApp.default_url=/lab/tree/notebooks $(LAB)

doctor: $(INSTALLED)
	-$(PY) -m pip check
	-$(PY) -m torch.utils.collect_env
	$(PY) -m jupyter kernelspec list
	@echo "If python3 above is outside $(VENV): $(PY) -m jupyter kernelspec remove python3"

docs: $(INSTALLED)
	@$(PY) scripts/build_docs.py

# Without .venv it takes $(PYTHON): a GPU machine that is at hand for minutes has torch, and perhaps no internet
gpu:
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m s2fpn_lib.benchmark.gpu $(GPU)

# The stamp is written last. Without it (the installation was interrupted) the next make starts from an empty .venv. With
# an older stamp (pyproject.toml changed) it installs on top.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Give another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -f $@ || rm -rf $(VENV)
	@rm -f $@
	@echo "Installing into $(VENV) (some minutes and about 6 GB the first time) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PY) -m pip install -qq --disable-pip-version-check -e '.[lite,openvino,search,studies,test]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
