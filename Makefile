# What is run daily; .ci/run calls the same. The tools come from PATH: activate an environment first.
.PHONY: dev test large faults interpret lint types bench gpu build

# As many test processes as there are cores, but few: each holds a torch of its own.
WORKERS ?= $(shell python -c 'import os; print(min(4, os.cpu_count() or 1))')

# Where the runs go that are killed.
FAULTS ?= /tmp/fastprune-kills

dev:  ## an editable install with everything that development needs
	python -m pip install -e '.[test,dev,rivals,timm,onnx]'
	pre-commit install

test:  ## all tests, the gates of machine code among them
	pytest -n $(WORKERS) --durations=10

large:  ## tests that want most of a machine's memory for themselves, one after the other
	pytest tests/run -m large --durations=5

faults:  ## the whole fault campaign: 100 kills, 1,000 mutants, disks, clocks, hostile files, memory
	pytest -n 0 tests/faults tests/run/test_directory.py
	python tests/faults/kills.py $(FAULTS)
	python tests/faults/mutations.py

interpret:  ## Triton kernels without a GPU: the interpreter must be on before a kernel is imported
	if [ -d tests/kernels ]; then TRITON_INTERPRET=1 pytest tests/kernels; fi

lint:
	ruff check .
	ruff format --check .

types:
	mypy

bench:  ## the quick benchmarks with their gates, one process, nothing beside them
	@# On a shared machine a neighbour can halve a ratio for a minute: what misses its bound is measured once more.
	pytest benchmarks || pytest benchmarks --last-failed --last-failed-no-failures none

gpu:  ## build, tests, sanitizer and benchmarks on a GPU, in under eight minutes
	python benchmarks/gpu_check.py

build:  ## a wheel in dist/
	python -m pip wheel . --no-deps --wheel-dir dist
