"""A trained cross-encoder: pairs of query and passage to scores."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import parallel
from retromae_jax.checkpoints.digests import model_digest
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.batches import BATCH_SIZES, by_length, one_behind
from retromae_jax.data.tokenization import SHORTEST_PAIR, encode_pairs, load_tokenizer
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import Progress, delayed
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.reranking import Model
from retromae_jax.retrieval.hits import Hit, hits
from retromae_jax.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CrossEncoder:
    """Scores pairs on all devices of this process.

    Args:
        config: sizes of the model.
        weights: `bert.*` and `classifier.*` parameters.
        tokenizer: the model's.
        settings: the longest pair in tokens, special ones included, and how passages become texts.
        compute_dtype: of activations, float32 or bfloat16.
        device: as for `Encoder`.

    Raises:
        InputError: if there is no such device, or pairs are longer than the model has positions.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: parameters.Arrays,
        tokenizer: "PreTrainedTokenizerBase",
        settings: EncoderSettings,
        compute_dtype: str = "float32",
        device: parallel.Device = None,
    ):
        self.config, self.tokenizer, self.settings, self.compute_dtype = config, tokenizer, settings, compute_dtype
        if not SHORTEST_PAIR <= self.max_length <= config.max_length:
            raise InputError(
                f"the maximum length {self.max_length} of a pair is not between {SHORTEST_PAIR} and the model's "
                f"{config.max_length} positions"
            )
        self.mesh = parallel.local_mesh(device)
        self.weights = jax.device_put(weights, parallel.replicated(self.mesh))
        computation = Computation.on(parallel.platform(self.mesh), config, compute_dtype)
        graph, _ = parameters.structure(lambda rngs: Model(config, computation, rngs))

        def score(weights, token_ids_BxL, lengths_B, first_lengths_B):
            pairs = {"token_ids": token_ids_BxL, "lengths": lengths_B, "first_lengths": first_lengths_B}
            rows = Rows.of(pairs | {"samples": jnp.zeros_like(lengths_B, jnp.uint32)}, seed=0)
            with parallel.full_precision(computation.dtype):
                return parameters.bind(graph, weights)(rows)[:, 0]

        self._score = jax.jit(score)

    @property
    def max_length(self) -> int:
        """Longest pair in tokens, special ones included."""
        return self.settings.max_length

    @functools.cached_property
    def digest(self) -> str:
        """Of the model; see `model_digest`."""
        return model_digest(self.config, self.tokenizer, self.weights)

    @classmethod
    def from_pretrained(
        cls, name_or_directory: str, compute_dtype: str = "float32", device: parallel.Device = None, **changes: Any
    ) -> "CrossEncoder":
        """Opens a Hugging Face directory, a Hub name or a run directory.

        Args:
            name_or_directory: the model: `AutoModelForSequenceClassification` with one label, or a run of
                `train.rerank`.
            compute_dtype: of activations, float32 or bfloat16.
            device: as for `Encoder`.
            **changes: of the model's settings: `max_length`, `titles`, `title_separator`; None leaves one as it is.

        Raises:
            InputError: if there is no such model or device, or the model is no cross-encoder or has no positions for
                pairs so long.
        """
        source = open_model(name_or_directory)
        _, shapes = parameters.structure(lambda rngs: Model(source.config, Computation(), rngs))
        weights, report = source.parameters(shapes)
        if report.fresh:
            raise InputError(
                f"{source.directory}: no cross-encoder, it lacks {', '.join(report.fresh)}; train one from it with "
                "train.rerank"
            )
        tokenizer = load_tokenizer(str(source.tokenizer))
        max_length = min(source.settings.max_length, tokenizer.model_max_length)
        settings = dataclasses.replace(source.settings, max_length=max_length).changed(**changes)
        return cls(source.config, weights, tokenizer, settings, compute_dtype, device)

    def rank(self, query: str, passages: Sequence[str], batch_size: int | None = None) -> list[Hit]:
        """All passages by their scores with the query, the best first; arguments as for `scores`."""
        with delayed():
            scores = self.scores([query] * len(passages), passages, batch_size=batch_size)
        order = np.argsort(-scores, kind="stable")
        return hits(scores[order], order, passages)

    def scores(self, queries: Sequence[str], passages: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """Scores of pairs, float32 [N], in their order.

        Args:
            queries: of N pairs; those that are longer than `max_length` are cut (see `encode_pairs`).
            passages: of the same pairs.
            batch_size: pairs that each device scores at once where they are as long as may be; of shorter ones as
                many more. None takes what suits the devices.

        Raises:
            InputError: if a score is not finite.
        """
        scores = np.empty(len(queries), np.float32)
        with jax.set_mesh(self.mesh), Progress("score", len(queries), "pairs") as progress:
            batch_size = batch_size or BATCH_SIZES[parallel.platform(self.mesh)]
            batches = self._batches(queries, passages, batch_size)
            scored = ((rows, self._score(self.weights, *arrays)) for rows, arrays in batches)
            for rows, result in one_behind(scored):
                scores[rows] = np.asarray(result)[: len(rows)]
                progress.update(len(rows))
        if not np.isfinite(scores).all():
            pair = int(np.argmin(np.isfinite(scores)))
            raise InputError(
                f"the score of the passage {shown(passages[pair])} for the query {shown(queries[pair])} is not finite; "
                "check the model's weights"
            )
        return scores

    def _batches(
        self, queries: Sequence[str], passages: Sequence[str], batch_size: int
    ) -> Iterator[tuple[np.ndarray, tuple[jax.Array, ...]]]:
        """Numbers of pairs of about the same length; their ids, lengths and first lengths."""
        token_ids, lengths, first_lengths = encode_pairs(self.tokenizer, queries, passages, self.max_length)
        pad_id = self.tokenizer.pad_token_id
        for rows, filled, batch in by_length(token_ids, lengths, batch_size, self.max_length, pad_id, self.mesh.size):
            yield rows, jax.device_put((batch, lengths[filled], first_lengths[filled]), parallel.over_batch(self.mesh))
