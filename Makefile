# Two commands do it all: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-exports lint types long chaos clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenmill needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fast,image,merges,video,data,cluster,dev]'
	touch $@

demo: $(VENV)/installed
	@$(BIN)/python examples/demo.py

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/installed
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

# Exports opened by libraries whose pins conflict with ours and with each other: an environment each.
EXPORTS := .venv-exports
test-exports: $(VENV)/installed $(EXPORTS)/mds/installed $(EXPORTS)/litdata/installed $(EXPORTS)/megatron/installed
	$(BIN)/python -m pytest tests/exports

$(EXPORTS)/%/installed: tests/exports/%.txt tests/exports/torchvision/pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q torch==2.13.0
	$(@D)/bin/python -m pip install -q ./tests/exports/torchvision -r $<
	touch $@

# Real text of 100 MB in three formats, locally and on S3: some minutes.
long: $(VENV)/installed
	$(BIN)/python -m pytest -m long -s tests/long tests/pipelines

# Minutes of random kills on a cluster of three nodes and SeaweedFS; CHAOS_SECONDS and SEED may be given.
chaos: $(VENV)/installed
	$(BIN)/python -m tests.chaos.storm --seconds $(or $(CHAOS_SECONDS),240) --files 120 --seed $(or $(SEED),0)

clean:
	rm -rf $(VENV) $(EXPORTS) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
