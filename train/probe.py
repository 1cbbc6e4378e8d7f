"""The retrieval probe: how well the parameters that are being trained find passages, measured on the way.

Queries of a development split, drawn by the seed, are searched for among their relevant passages and a random sample of
the others, exactly. There are fewer passages than in the whole collection, so scores are higher than those of `eval`;
they compare a run's steps with each other.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retromae_jax import flops, parallel
from retromae_jax.data.retrieval import load_collection
from retromae_jax.data.tokenization import encode_batch
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import KINDS, TextEncoder, of_kind
from retromae_jax.retrieval.metrics import score
from retromae_jax.retrieval.runs import make_run
from retromae_jax.retrieval.search import Method, PassageIndex
from retromae_jax.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from retromae_jax.checkpoints.train_state import TrainState

NAME = "probe"
MEASURES = ("nDCG@10", "MRR@10")
MOST_QUERIES = 1000
DEPTH = 10
TEXTS_AT_ONCE = 64


class Texts(NamedTuple):
    """Texts of a kind as token ids, int32 [N, L], padded to batches of one shape; their lengths, [N]; and their number.

    Those beyond the number fill up the last batch.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    number: int


class Probe:
    """Measures parameters.

    Args:
        config: with the keys `probe_...` and `seed`.
        tokenizer: the model's.
        bert: sizes of the encoder.
        settings: how the model makes embeddings.
        mesh: devices that hold the parameters.

    Raises:
        InputError: if the collection cannot be read.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: "PreTrainedTokenizerBase",
        bert: BertConfig,
        settings: EncoderSettings,
        mesh: jax.sharding.Mesh,
    ):
        self._bert, self._settings, self._mesh = bert, settings, mesh
        collection = load_collection(config.probe_collection, config.probe_split)
        generator = np.random.default_rng([config.seed, 0x960BE])
        queries, passages = _draw(collection.relevant_passages(), len(collection.passages), config, generator)
        ids = list(collection.queries)
        self._queries = [ids[query] for query in queries]
        if not self._queries:
            raise InputError(
                f"{config.probe_collection}, split {config.probe_split}: no query whose relevant passages are at most "
                f"half of probe_passages {config.probe_passages}; raise it"
            )
        self._qrels = {query: collection.qrels[query] for query in self._queries}
        self._level = collection.relevance_level
        self._passage_ids = collection.passages.ids.take(passages)
        texts = collection.passages.texts(settings.titles, settings.title_separator)
        of_kinds = ([collection.queries[query] for query in self._queries], [texts[int(i)] for i in passages])
        self._batch_size = -(-TEXTS_AT_ONCE // mesh.size) * mesh.size
        self._texts = [
            _padded(
                *encode_batch(tokenizer, some, settings.max_length_of(kind), settings.prompt_of(kind)), self._batch_size
            )
            for some, kind in zip(of_kinds, KINDS, strict=True)
        ]
        computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype)
        graph, shapes = parameters.structure(lambda rngs: TextEncoder(bert, settings, computation, rngs))
        self._names = list(shapes)

        def embed(weights: parameters.Parameters, batch: Mapping[str, jax.Array]) -> jax.Array:
            with parallel.full_precision(computation.dtype):
                return parameters.bind(graph, weights)(Rows.of(batch, seed=0))[:, 0]

        self._embed = jax.jit(embed, out_shardings=parallel.replicated(mesh))

    def __call__(self, state: "TrainState") -> dict[str, float]:
        """nDCG@10 and MRR@10 of a state's parameters."""
        query_embeddings, passage_embeddings = (
            self._encoded(texts, of_kind(state.parameters, kind) if self._settings.untie_encoder else state.parameters)
            for texts, kind in zip(self._texts, KINDS, strict=True)
        )
        index = PassageIndex(passage_embeddings, Method("flat"), self._settings.lexical_top_k)
        found = index.search(query_embeddings, DEPTH)
        return score(make_run(self._queries, self._passage_ids, *found), self._qrels, MEASURES, self._level).means

    def _encoded(self, texts: Texts, values: parameters.Parameters) -> np.ndarray:
        """Embeddings of texts, float32 [N, D], on every host."""
        weights = {name: values[name] for name in self._names}
        own = parallel.local_rows(self._batch_size) if self._mesh.is_multi_process else slice(None)
        made = []
        with jax.set_mesh(self._mesh):
            for start in range(0, len(texts.lengths), self._batch_size):
                here = slice(start, start + self._batch_size)
                batch = {"token_ids": texts.token_ids[here][own], "lengths": texts.lengths[here][own]}
                batch["samples"] = np.zeros(len(batch["lengths"]), np.uint32)
                made.append(self._embed(weights, parallel.place_batch(self._mesh, batch)))
        return np.concatenate([np.asarray(x) for x in made])[: texts.number]

    def cost(self, every: int, step_flops: float) -> str:
        """What there is to measure, and what share of the training's time that takes."""
        told = f"{self._texts[0].number:,} queries, {self._texts[1].number:,} passages, every {every:,} steps"
        if not step_flops:
            return told
        lengths = np.concatenate([np.full(len(texts.lengths), texts.token_ids.shape[1]) for texts in self._texts])
        own = flops.encoder_flops(self._bert, lengths, lengths)
        return f"{told}, as much work as {own / step_flops:.1f} steps each time ({own / step_flops / every:.1%} more)"


def _draw(
    relevant: list[np.ndarray], passages: int, config: ConfigDict, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of queries, in random order, whose relevant passages make up half of all at most; and of passages."""
    queries: list[int] = []
    wanted: set[int] = set()
    for query in generator.permutation(len(relevant)):
        if len(queries) == MOST_QUERIES:
            break
        if 0 < len(relevant[query]) <= config.probe_passages // 2 - len(wanted):
            queries.append(query)
            wanted.update(relevant[query].tolist())
    others = generator.choice(passages, min(config.probe_passages, passages), replace=False)
    room = config.probe_passages - len(wanted)
    others = others[~np.isin(others, list(wanted))][:room]
    return np.array(queries, int), np.sort(np.concatenate([np.array(sorted(wanted), int), others]))


def _padded(token_ids: np.ndarray, lengths: np.ndarray, batch_size: int) -> Texts:
    """Texts in whole batches, so that one program is compiled for all."""
    number = len(lengths)
    rows = np.resize(np.arange(number), -(-number // batch_size) * batch_size)
    return Texts(token_ids[rows], lengths[rows], number)


class Best(NamedTuple):
    """The step at which a run's probe scored highest, and the newest step at which it was measured, with scores."""

    step: int
    score: float
    last_step: int
    last_score: float

    def told(self) -> str:
        """In words."""
        measure = MEASURES[0]
        if self.step == self.last_step:
            return f"{measure} {self.score:.4f} at step {self.step:,}, the best"
        return (
            f"{measure} {self.score:.4f} at step {self.step:,}, the best; "
            f"{self.last_score:.4f} at step {self.last_step:,}"
        )


def best_step(rows: Iterable[Mapping[str, float]]) -> Best | None:
    """Of lines of `metrics.jsonl`; None if there was no probe."""
    scores = [(row[f"{NAME}/{MEASURES[0]}"], int(row["step"])) for row in rows if f"{NAME}/{MEASURES[0]}" in row]
    if not scores:
        return None
    (highest, step), (last, last_step) = max(scores, key=lambda pair: (pair[0], -pair[1])), scores[-1]
    return Best(step, highest, last_step, last)
