# Every action of the repository. Two commands do all the set-up on a machine that has only Python 3.11 and make:
#     make demo     the main job: the embedded model captions, answers, finds, segments and reads, offline
#     make test     the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test lint types real sanitize bench eval-tiny docs clean

help:  ## list the actions
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/ready  ## make .venv with everything for development, at the pinned versions

.venv/ready: pyproject.toml constraints.txt $(wildcard src/gemlens/kernels/cpu/* src/gemlens/kernels/cpu/isa/*)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gemlens needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,real]'
	@touch $@

demo: setup  ## caption, answer, find, segment and read on a picture, with the embedded model
	@$(BIN)/gemlens demo

test: setup  ## run the tests (those marked real need `make real`)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not gpu'

lint: setup  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## check types
	$(BIN)/mypy

real: setup  ## bring the real model and tokenizers that tests marked real need into real/
	$(BIN)/python tests/real/bring.py

sanitize: setup  ## build the kernels with sanitizers, some minutes, and run their tests
	$(BIN)/pip install --quiet --constraint constraints.txt cmake nanobind
	$(BIN)/python tests/kernels/sanitize.py

bench: real  ## run the benchmarks, side by side with their peers
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/image_processors.py
	$(BIN)/python benchmarks/tokenizers_and_text.py
	$(BIN)/python benchmarks/finetuning.py
	$(BIN)/python benchmarks/new_question.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/cpu_engine.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/leaks.py

eval-tiny: setup  ## score the embedded model on 1,000 scenes that it never saw
	$(BIN)/python recipes/gemlens-tiny/score.py

docs: setup  ## write docs/cli from the app, check that the documentation's code runs and its links lead somewhere
	$(BIN)/python -m gemlens.cli.help_pages docs/cli
	$(BIN)/pytest tests/test_documentation.py

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
