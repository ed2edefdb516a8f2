# Needs make and Python 3.11, 3.12 or 3.13. `make help` lists the targets.

PYTHON ?= python3.11
VENV ?= .venv
# Lock file: JAX 0.10 for Python 3.11, JAX 0.12 for later versions.
LOCK := $(shell $(PYTHON) -c "import sys; \
  print('requirements.lock' if sys.version_info < (3, 12) else 'requirements-py312.lock')" 2>/dev/null \
  || echo requirements.lock)
OLDER := $(filter requirements.lock,$(LOCK))
# Training steps and flags of the demo. It continues from the shipped weights (`fresh` is empty): training from
# the base alone needs about 20,000 images before the reference shows.
DEMO_STEPS ?= 30
DEMO_FLAGS ?= --config.fresh= --config.optimizer.learning_rate=2e-4 --config.optimizer.warmup=10 \
  --config.curriculum.start=1.0 --config.data.toybox_examples=4000
PYTEST_WORKERS ?= 2
PYTEST_FLAGS ?=
# Whether the tests compare with PyTorch models. On Linux, the default PyTorch package includes gigabytes of CUDA;
# `make test TORCH_FLAGS="--extra-index-url URL"` installs a smaller build. `make test PARITY=` skips PyTorch and
# the comparisons. Python 3.12 and later always skip them, because the oracles need older packages.
PARITY ?= $(if $(OLDER),yes)
TORCH_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# This file exists while an install runs; an interrupted install leaves it behind.
HALF := $(VENV)/.installing
PARITY_STAMP := $(VENV)/.installed-parity
# transformers 5 is installed in its own folder, for one slow test.
TRANSFORMERS5 := $(VENV)/transformers5

# The stamp is valid only if the environment works and has this checkout installed. After the folder is moved,
# or its Python is removed, everything is installed again.
WORKS := $(shell $(BIN)/python -P -c "import importlib.util as u, os; \
  print(os.path.samefile(u.find_spec('realcustom_jax').origin, 'realcustom_jax/__init__.py'))" 2>/dev/null)
ifneq ($(WORKS)$(wildcard $(HALF)),True)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help demo report test test-slow lint format

help: ## show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' Makefile

$(STAMP): $(LOCK) setup.py
	@if [ -e $(HALF) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(VENV) with $(PYTHON)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	@touch $(HALF)
	$(PIP) install -r $(LOCK)
	$(PIP) install --no-deps --no-build-isolation -e .
	@rm $(HALF)
	@touch $@

# PyTorch is installed first, so that no other package selects its build.
$(PARITY_STAMP): requirements-parity.lock $(STAMP)
	@touch $(HALF)
	grep '^torch==' $< | xargs $(PIP) install $(TORCH_FLAGS) -c requirements.lock || (rm $(HALF); exit 1)
	$(PIP) install -c requirements.lock -r $< || (rm $(HALF); exit 1)
	@rm $(HALF)
	@touch $@

$(TRANSFORMERS5)/.installed: requirements-transformers5.lock $(STAMP)
	rm -rf $(TRANSFORMERS5)
	$(PIP) install --no-deps --target $(TRANSFORMERS5) -r $<
	@touch $@

demo: $(STAMP) ## train the toybox model for some steps, and write images of held-out subjects to runs/demo/demo.png
	rm -rf runs/demo/train
	$(BIN)/python -m realcustom_jax.train --config configs/tiny.py --workdir runs/demo/train \
	  --config.steps=$(DEMO_STEPS) $(DEMO_FLAGS)
	$(BIN)/python -m realcustom_jax.toybox.demo --model runs/demo/train/model --out runs/demo

# 17 settings with 208 requests each, in batches of 26. Results in runs/report are reused.
report: $(STAMP) ## measure the method and its ablations on the toybox, and write docs/evaluation.md and its plot
	$(BIN)/python -m realcustom_jax.evaluation.report --model toybox --batch 26 --runs runs/report --out docs

# Tests run on CPU, to give the same results everywhere. Most files stay on one worker, so that tests share
# compiled programs; an idle worker takes tests from the other.
TESTED := $(STAMP) $(if $(PARITY),$(PARITY_STAMP))
RUN_TESTS = JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

test: $(TESTED) ## run all tests except the slow ones
	$(RUN_TESTS) -m "not slow" $(PYTEST_FLAGS)

test-slow: $(TESTED) $(if $(OLDER),$(TRANSFORMERS5)/.installed) ## run the slow tests: full-size networks, published loops, transformers 5, two processes, stored latents, the page in a browser
	$(RUN_TESTS) -m slow $(PYTEST_FLAGS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP) ## fix formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
