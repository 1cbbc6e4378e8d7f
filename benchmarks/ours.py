"""This project's system: the parts of `train.pretrain`, fed from token blocks as there."""

import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pyarrow as pa

from benchmarks.worker import Task
from configs import defaults
from retromae_jax import parallel
from retromae_jax.data.blocks import COLUMN, TokenBlocks, write_blocks, write_description
from retromae_jax.data.packing import SPECIAL_TOKENS, RowMaker, room_for_texts
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.masking import Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.optimizer import adamw
from retromae_jax.training import initial_state, pretraining_step


class RetroMAEJax:
    """A `System`; texts are tokenized once, as `train.prepare` does, before the first step."""

    def __init__(self, task: Task):
        self.task, self.config = task, defaults.pretraining()
        # PyTorch is installed for the peers. This project does without, but its tokenizer's library would import it.
        sys.modules["torch"] = None
        self.tokenizer = load_tokenizer(task.tokenizer)
        self.blocks, self.tokenized_seconds = self._prepare()

        bert, vocabulary = BertConfig(**task.sizes), Vocabulary.of(self.tokenizer)
        computation = Computation.on(jax.default_backend(), bert, task.dtype)
        objective = OBJECTIVES[self.config.objective].from_config(self.config, bert, vocabulary, computation)
        graph, shapes = parameters.structure(objective.model)
        schedule = optax.constant_schedule(self.config.learning_rate)
        optimizer = adamw(schedule, self.config.weight_decay, self.config.clip_norm)
        self.mesh = parallel.data_mesh()
        self.state = initial_state(objective.model, shapes, None, optimizer, task.seed, self.mesh)
        self.step = pretraining_step(objective, graph, optimizer, task.seed)
        ids = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id
        shapes = self.config.shape_buckets
        self.maker = RowMaker(
            task.max_length,
            room_for_texts(self.blocks.lengths, task.max_length),
            shapes,
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
            self.state, metrics = self.step(self.state, batch)
        return metrics["loss"]

    def warm_up_steps(self) -> list[int]:
        """One step of each shape, because each is compiled."""
        steps = {}
        for step in range(self.task.steps):
            batch, _ = self.collate(step)
            steps.setdefault(tuple(array.shape for array in batch.values()), step)
        return list(steps.values())
