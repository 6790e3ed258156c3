# `make demo` and `make test` need Python 3.11+, a C compiler and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# constraints.txt in every install: a plain `torch` would pull another build.
# Without the multimodal part llama.cpp compiles in half the time. Its AMX code dies of a segmentation fault in
# virtual machines that show AMX and don't let it be used, so compilers that know AMX are told to leave it alone.
NO_AMX := $(shell echo | $(or $(CC),cc) -mno-amx-tile -mno-amx-int8 -mno-amx-bf16 -E - >/dev/null 2>&1 && echo -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
CMAKE_DEFAULTS = -DLLAVA_BUILD=OFF $(if $(NO_AMX),-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)')
PIP = CMAKE_ARGS="$${CMAKE_ARGS:-$(CMAKE_DEFAULTS)}" $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test test-slow check bench bench-gpu screenshots clean

$(VENV)/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (llama.cpp is compiled once, 5 to 10 minutes on two cores)"
	$(PIP) torch==2.13.0
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	@touch $@

# The whole loop on a small real model: about ten minutes on two cores.
demo: $(VENV)/.demo
	$(BIN)/amigo-local demo

# Two files at a time: a file's tests share what they set up. One thread each, since spinning threads stall each other.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not gpu'

check: $(VENV)/.dev
	$(BIN)/ruff check amigo_local tests benchmarks
	$(BIN)/ruff format --check amigo_local tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# Prints the figures of docs/measurements.md, measured here and now.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/tui.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/weights.py

# On a machine with a card: peaks, speed and copies at Gemma-3-12B's shape; goes on where it was cut.
bench-gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/qlora_12b.py --vram 6GiB

# Pictures of the app for the docs; the first time runs the demo for them. Debian: bubblewrap chromium fonts-firacode.
screenshots: $(VENV)/.dev
	$(BIN)/python docs/make_screenshots.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
