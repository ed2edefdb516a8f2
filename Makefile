# Needs Python 3.11, 3.12 or 3.13, and make. `make help` lists what there is.

PYTHON ?= python3.11
VENV ?= .venv
# Exact versions: JAX 0.10 for Python 3.11, today's for later ones.
LOCK := $(shell $(PYTHON) -c "import sys; \
  print('requirements.lock' if sys.version_info < (3, 12) else 'requirements-py312.lock')" 2>/dev/null \
  || echo requirements.lock)
OLDER := $(filter requirements.lock,$(LOCK))
# The demo's training: how many steps, and further flags. It goes on from the shipped weights (`fresh` is empty):
# from a base alone, the reference began to show only after some 20,000 images (with AdamW and less noise).
DEMO_STEPS ?= 30
DEMO_FLAGS ?= --config.fresh= --config.optimizer.learning_rate=2e-4 --config.optimizer.warmup=10 \
  --config.curriculum.start=1.0 --config.data.toybox_examples=4000
PYTEST_WORKERS ?= 2
PYTEST_FLAGS ?=
# Whether the tests compare with PyTorch's models. On Linux, PyPI's PyTorch brings gigabytes for CUDA, where a pip
# that knows of a smaller build takes that: `make test TORCH_FLAGS="--extra-index-url URL"`. `make test PARITY=`
# leaves PyTorch out and skips the comparisons, as does Python 3.12, for whose packages there is no parity.
PARITY ?= $(if $(OLDER),yes)
TORCH_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# An install that was cut off leaves this file behind.
HALF := $(VENV)/.installing
PARITY_STAMP := $(VENV)/.installed-parity
# transformers 5 lies beside the environment's transformers 4, and one slow test puts it first.
TRANSFORMERS5 := $(VENV)/transformers5

# The stamp counts only where the environment runs and holds this very checkout: a folder that was moved, a
# Python that was removed, are installed again.
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

# PyTorch comes first, so that nothing else chooses its build.
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

demo: $(STAMP) ## customize the toybox model shortly, sample held-out subjects into runs/demo/demo.png
	rm -rf runs/demo/train
	$(BIN)/python -m realcustom_jax.train --config configs/tiny.py --workdir runs/demo/train \
	  --config.steps=$(DEMO_STEPS) $(DEMO_FLAGS)
	$(BIN)/python -m realcustom_jax.toybox.demo --model runs/demo/train/model --out runs/demo

# Some 17 settings of 208 requests each, 26 at once as for the docs; what is in runs/report is not made again.
report: $(STAMP) ## measure the method and its ablations in the toybox, write docs/evaluation.md and its plot
	$(BIN)/python -m realcustom_jax.evaluation.report --model toybox --batch 26 --runs runs/report --out docs

# The tests are the same everywhere, so they run on CPU. Files mostly stay with one worker, whose tests share what
# they compile; a worker without work takes over tests of the other.
TESTED := $(STAMP) $(if $(PARITY),$(PARITY_STAMP))
RUN_TESTS = JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

test: $(TESTED) ## run the tests but the slow ones
	$(RUN_TESTS) -m "not slow" $(PYTEST_FLAGS)

test-slow: $(TESTED) $(if $(OLDER),$(TRANSFORMERS5)/.installed) ## run those that `test` leaves out: networks of real size, whole published loops, transformers 5, runs of two processes and on stored latents
	$(RUN_TESTS) -m slow $(PYTEST_FLAGS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP) ## fix formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
