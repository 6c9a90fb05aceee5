# Every target makes its own environment in .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: the tests of one file stay together, for they share models that fixtures train.
PYTEST := -m pytest --numprocesses 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-mesa demo-softmax-conv test test-all test-newest test-oldest test-gpu gpu check lint types house docs clean

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mesalm needs Python 3.11 or later; call make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[eval,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) -e '.[docs]'
	@touch $@

# Prepare the built-in text, train a mesa model and its softmax twin side by side, one core each, and compare them.
DEMO_REPORT := --task word_labels --out runs/demo-report
demo: $(VENV)/.base
	$(BIN)/mesalm prepare demo
	@OMP_NUM_THREADS=1 TERM=dumb $(MAKE) --no-print-directory --jobs=2 demo-mesa demo-softmax-conv
	$(BIN)/mesalm compare runs/demo-mesa runs/demo-softmax-conv --baseline demo-softmax-conv $(DEMO_REPORT)

demo-mesa demo-softmax-conv: demo-%:
	$(BIN)/mesalm train demo --arm $*
	$(BIN)/mesalm eval runs/demo-$* $(DEMO_REPORT)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-all: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m 'slow or not slow'

# The quick suite under the newest and under the oldest releases of the dependencies (.ci/releases.py), each in an
# environment of its own that is made anew.
test-newest test-oldest: test-%:
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	$(PYTHON) .ci/releases.py $* > .venv-$*/releases.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-$*/releases.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	OMP_NUM_THREADS=1 .venv-$*/bin/python $(PYTEST) -W 'ignore:mesalm is tested with'

# On a machine with a card: the interpreter that holds torch for it, which is used as it is.
GPU_PYTHON ?= python3
GPU_OUT ?= gpu-results
GPU_RUN ?= all

test-gpu:
	$(GPU_PYTHON) kernels/bench/gpu_session.py --only check-all --out $(GPU_OUT)

# What waits for a card (docs/gpu.md): benchmarks and tests.
gpu:
	$(GPU_PYTHON) kernels/bench/gpu_session.py $(GPU_RUN) --out $(GPU_OUT) $(if $(GPU_SECONDS),--seconds $(GPU_SECONDS))

check: $(VENV)/.dev
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types house

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

house: $(VENV)/.dev
	$(BIN)/python -m pytest tests/house

# The site of docs/, with the API from the docstrings, in build/site; a link that leads nowhere is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .cache build dist .pytest_cache .mypy_cache .ruff_cache
