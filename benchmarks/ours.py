"""This project's systems: the parts of `train.pretrain`, fed from token blocks as there, of `train.finetune`, and of
`eval.encode`."""

import abc
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pyarrow as pa
from ml_collections import ConfigDict

from benchmarks.texts import neighbours_score
from benchmarks.worker import EncodingTask, FinetuningTask, PretrainingTask, Task
from configs import defaults
from retromae_jax import parallel
from retromae_jax.checkpoints.loading import Source, open_model
from retromae_jax.data.batches import BATCH_SIZES, by_length
from retromae_jax.data.blocks import COLUMN, TokenBlocks, write_blocks, write_description
from retromae_jax.data.packing import SPECIAL_TOKENS, RowMaker, fill_shares, packed_shares, room_for_texts
from retromae_jax.data.tokenization import encode_batch, load_tokenizer
from retromae_jax.encoder import Encoder
from retromae_jax.masking import Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.objectives.contrastive import Contrastive
from retromae_jax.optimizer import adamw
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.training import compile_for_memory, finetuning_step, initial_state, pretraining_step
from train.finetune import together


class _JaxSystem(abc.ABC):
    """A `System` of this project."""

    tokenized_seconds = 0.0

    def __init__(self, task: Task, config: ConfigDict):
        self.task, self.config = task, config
        # PyTorch is installed for the peers. This project does without, but its tokenizer's library would import it.
        sys.modules["torch"] = None

    def begin(self, objective: Any, source: Source | None, mesh: jax.sharding.Mesh, make_step: Callable) -> None:
        """Makes the state, and a step that is not compiled yet."""
        graph, shapes = parameters.structure(objective.model)
        schedule = optax.constant_schedule(self.config.learning_rate)
        optimizer = adamw(schedule, self.config.weight_decay, self.config.clip_norm)
        seed = self.task.seed
        self.initial = functools.partial(initial_state, objective.model, shapes, source, optimizer, seed, mesh)
        self.restart()
        self.step = make_step(objective, graph, optimizer, seed)

    @abc.abstractmethod
    def collate(self, step: int) -> tuple[dict[str, Any], int]:
        """As `System.collate`."""

    def train(self, batch: dict[str, Any]) -> jax.Array:
        self.state, metrics = self.step(self.state, batch)
        return metrics["loss"]

    def warm_up_steps(self) -> list[int]:
        """One step of each shape, because each is compiled."""
        steps = {}
        for step in range(self.task.steps):
            batch, _ = self.collate(step)
            steps.setdefault(tuple(array.shape for array in batch.values()), step)
        return list(steps.values())

    def restart(self) -> None:
        self.state = None
        self.state = self.initial()


class RetroMAEJax(_JaxSystem):
    """A `System`; texts are tokenized once, as `train.prepare` does, before the first step."""

    def __init__(self, task: PretrainingTask):
        compile_for_memory()
        super().__init__(task, defaults.pretraining())
        self.tokenizer = load_tokenizer(task.tokenizer)
        self.blocks, self.tokenized_seconds = self._prepare()

        bert, vocabulary = BertConfig(**task.sizes), Vocabulary.of(self.tokenizer)
        computation = Computation.on(jax.default_backend(), bert, task.dtype)
        objective = OBJECTIVES[self.config.objective].from_config(self.config, bert, vocabulary, computation)
        self.mesh = parallel.data_mesh()
        self.begin(objective, None, self.mesh, pretraining_step)
        ids = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id
        self.maker = RowMaker(
            task.max_length,
            room_for_texts(self.blocks.lengths, task.max_length),
            self.config.shape_buckets,
            task.batch_size,
            self.mesh.size,
            *ids,
        )

    def _prepare(self) -> tuple[TokenBlocks, float]:
        """The texts as token blocks, and the processor time that tokenizing took."""
        started = time.process_time()
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(self.task.texts), add_special_tokens=False)
        seconds = time.process_time() - started
        limit = self.task.max_length - SPECIAL_TOKENS
        ids = pa.array([encoding.ids[:limit] for encoding in encodings], pa.list_(pa.int32()))
        with tempfile.TemporaryDirectory() as directory:
            write_blocks(pa.table({COLUMN: ids}), Path(directory) / "blocks.arrow")
            write_description(Path(directory), ["blocks.arrow"], "benchmark", {})
            return TokenBlocks(directory), seconds  # the files are mapped, and stay so without their names

    def collate(self, step: int) -> tuple[dict[str, jax.Array], int]:
        numbers = np.arange(len(self.blocks))[self.task.batch(step)]
        texts = self.blocks.draw(numbers, np.zeros_like(numbers))
        layout = self.maker.layout(texts)
        arrays = self.maker.rows(layout, texts, numbers, parallel.local_rows(layout.rows))
        return parallel.place_batch(self.mesh, arrays), int(layout.tokens_N.sum())

    def train(self, batch: dict[str, jax.Array]) -> jax.Array:
        with jax.set_mesh(self.mesh):
            return super().train(batch)


class FineTuning(_JaxSystem):
    """A `System`: the parts of `train.finetune`. It tokenizes in the loop, as there."""

    def __init__(self, task: FinetuningTask):
        compile_for_memory()
        super().__init__(task, defaults.finetuning())
        source = open_model(task.model)
        self.tokenizer = load_tokenizer(str(source.tokenizer))
        self.config.update(
            pooling=source.settings.pooling,
            normalize=True,
            temperature=task.temperature,
            gradient_cache_chunk=task.chunk,
            mask_false_negatives=False,  # the peer takes them as negatives
        )
        bert = dataclasses.replace(
            source.config, hidden_dropout_prob=task.dropout, attention_probs_dropout_prob=task.dropout
        )
        computation = Computation.on(jax.default_backend(), bert, "float32")
        objective = Contrastive.from_config(self.config, bert, computation)
        self.begin(objective, source, parallel.local_mesh(), finetuning_step)

    def collate(self, step: int) -> tuple[dict[str, np.ndarray], int]:
        task, groups = self.task, self.task.texts[self.task.batch(step)]
        token_ids, lengths = together(
            *encode_batch(self.tokenizer, [query for query, *_ in groups], task.max_length),
            *encode_batch(self.tokenizer, [text for _, *passages in groups for text in passages], task.max_length),
        )
        layouts = packed_shares(lengths[None], task.max_length, self.config.shape_buckets)
        samples = np.arange(len(lengths), dtype=np.uint32) + np.uint32(step * len(lengths))
        batch = fill_shares(layouts, layouts[0].rows, token_ids, {"samples": samples}, self.tokenizer.pad_token_id)
        batch["places"] = batch["places"].reshape(1, len(groups), -1)
        return batch, int(lengths.sum())


class Encoding(_JaxSystem):
    """A `System`: `encode_texts` as `eval.encode` calls it."""

    dtype = "float32"

    def __init__(self, task: EncodingTask):
        super().__init__(task, ConfigDict())
        self.encoder = Encoder.from_pretrained(task.model, self.dtype, max_length=task.max_length)
        lengths = encode_batch(self.encoder.tokenizer, list(task.texts), task.max_length)[1]
        self.lengths = [lengths[task.batch(step)] for step in range(task.steps)]
        self.shapes = [{batch.shape for _, _, batch in self._batches(of_step)} for of_step in self.lengths]

    def _batches(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        ids = np.zeros((len(lengths), lengths.max()), np.int32)
        return by_length(ids, lengths, BATCH_SIZES["cpu"], self.task.max_length, 0)

    def collate(self, step: int) -> tuple[Sequence[str], int]:
        return self.task.texts[self.task.batch(step)], int(self.lengths[step].sum())

    def train(self, batch: Sequence[str]) -> float:
        return neighbours_score(encode_texts(self.encoder, batch, "passage"))

    def warm_up_steps(self) -> list[int]:
        """A step, after each shape of batch has been compiled."""
        for rows, length in set().union(*self.shapes):
            jax.block_until_ready(self.encoder.embed(np.zeros((rows, length), np.int32), np.full(rows, length)))
        return [0]

    def restart(self) -> None:
        pass


class RoundedEncoding(Encoding):
    """The same in bfloat16."""

    dtype = "bfloat16"
