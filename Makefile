# make demo   export the embedded model and watch it answer questions about the sample video
# make test   everything that must pass
# make docs   the documentation site, in build/site
# Both make their own virtual environment; nothing outside this folder is touched.

PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= build/demo-int8-cpu
PIP_FLAGS ?=
# Files are shared out to one process per core and one that waits; -n0 runs all in one.
PYTEST_FLAGS ?= -n auto

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check install $(PIP_FLAGS)
EXPORT_FROM := $(shell find export runtime quant -name '*.py' 2>/dev/null) $(wildcard apps/demo/demo.* apps/demo/vocab.txt)
NATIVE := setup.py $(wildcard runtime/native/src/*)

.PHONY: demo test docs clean

demo: $(VENV)/.export $(BUNDLE)/manifest.json
	$(PY) -m apps.webcam_qa --bundle $(BUNDLE) --source apps/demo/sample.mp4 --check </dev/null

test: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

docs: $(VENV)/.dev
	$(PY) -m mkdocs build --strict

# Exported again when the exporter or the demo model is newer.
$(BUNDLE)/manifest.json: $(EXPORT_FROM) | $(VENV)/.export
	$(PY) -m export --int8 --overwrite --out $(BUNDLE)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "$(PYTHON) is not Python 3.10 to 3.13; try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	@echo "installing the exporter and the runtime into $(VENV), and compiling the native step (a few minutes)"
	$(PIP) -e ".[export]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	@echo "installing everything the tests need into $(VENV), and compiling the native step (a few minutes)"
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.export

clean:
	rm -rf build dist .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
