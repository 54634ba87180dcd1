# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 30
INSTALLED := $(VENV)/.installed
SEED ?= 0
OUTPUT ?= runs/demo

export RAY_USAGE_STATS_ENABLED := 0
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test faults check docs bench install clean

demo: install  ## the whole chain on this machine, no network needed: web pages to report.html
	$(RUN) -m jobs.demo --output $(OUTPUT) --seed $(SEED)

test: install  ## the tests, but for those of `make faults`
	$(PYTEST) -m "not faults"

faults: install  ## kills, drains, hostile webs and long runs
	$(PYTEST) -m faults

check: install docs  ## style, types, layering, documentation
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest -q tests/test_layering.py

docs: install  ## the documentation as a site, in build/docs
	$(VENV)/bin/mkdocs build --strict --config-file .mkdocs.yml

bench: install  ## the performance table against peers, into docs/results.md
	$(RUN) -m tests.perf

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,benchmark]'
	touch $(INSTALLED)

clean:  ## what the commands above have made, the environment included
	rm -rf $(VENV) build runs .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
