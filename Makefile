# Night School's few commands. `make serve` is all that a new machine needs: Python 3.11 or newer, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
IS_RECENT := 'import sys; sys.exit(sys.version_info < (3, 11))'

.PHONY: help venv serve test slow vllm-check gpu-check

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## make .venv with all that serving and testing need

$(INSTALLED): pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): a few minutes the first time.'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 && $(BIN)/python -c $(IS_RECENT) || { \
	  $(PYTHON) -c $(IS_RECENT) || { echo '$(PYTHON) is not Python 3.11 or newer - name one: make $(MAKECMDGOALS) PYTHON=python3.12'; false; } \
	  && $(PYTHON) -m venv --clear $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

serve: $(INSTALLED) ## chat at http://127.0.0.1:7860; more with ARGS="--port 8000"
	$(BIN)/chatbot serve $(ARGS)

# A process a core, at most four, each with the tests of whole files, which share what they set up.
test: WORKERS ?= -n $$($(BIN)/python -c 'import os; print(min(4, len(os.sched_getaffinity(0))))') --dist loadfile
# On tiny models threads only wait for each other, and the longer the busier the machine is.
test: export OMP_NUM_THREADS ?= 1
test: $(INSTALLED) ## ruff, mypy, and every test that needs no GPU and no patience
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not gpu and not vllm" $(WORKERS) $(ARGS)

slow: $(INSTALLED) ## full-size runs on the embedded model
	$(BIN)/python -m pytest -m slow $(ARGS)

vllm-check: $(INSTALLED) ## two real vLLM servers, started with the python of VLLM_PYTHON
	$(BIN)/python -m pytest -m vllm $(ARGS)

gpu-check: $(if $(GPU_PYTHON),,$(INSTALLED)) ## the tests that need a CUDA device, by GPU_PYTHON where that is given
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest -m gpu tests/test_gpu.py $(ARGS)
