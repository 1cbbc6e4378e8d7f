"""Trains a cross-encoder: of each query's group of passages, the relevant one is to score highest.

    python -m train.rerank --config configs/rerank.py --config.init runs/wiki

It starts from any encoder, with a fresh classifier, or from a cross-encoder. The same command runs on a TPU pod, on
GPUs and on a CPU. Started again with the same --config.workdir, it goes on from the newest checkpoint there.
"""

import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import hosts, parallel
from retromae_jax.data.groups import TrainingGroups
from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.data.tokenization import SHORTEST_PAIR, encode_pairs
from retromae_jax.errors import exits_on_input_error
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.reranking import Reranking
from retromae_jax.training import compile_for_memory
from train import checks, mapped
from train.command_line import parse_training
from train.export import export_run


def rerank(config: ConfigDict, profile: bool = False) -> None:
    """Trains as `config` (see `configs.defaults`) says; `profile` traces a few steps.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Settings, model and data, checked against each other before any work.
    start, no_start = checks.attempt(checks.start, config)
    problems = [
        no_start,
        checks.existing(config, "collection", "negatives"),
        checks.whole_numbers(config, batch_size=1, group_size=2, shape_buckets=1, log_every=1, checkpoint_every=1),
        checks.whole_numbers(config, negatives_depth=1, num_steps=0, checkpoints_to_keep=1, seed=0),
        checks.above_zero(config, "learning_rate", "num_epochs", "clip_norm"),
        checks.shares(config, "warmup_fraction"),
        checks.saving(config),
        checks.watching(config),
        checks.batch(config),
        checks.known("compute_dtype", config.compute_dtype, checks.DTYPES),
    ]
    if start:
        problems += [
            checks.one_encoder(config, start.source),
            checks.vocabulary(start.tokenizer, start.bert),
            checks.positions("max_length", config.max_length, start.bert, SHORTEST_PAIR),
            checks.attention(config, start.bert),
            checks.room(config, start.bert),
        ]
    checks.fit(*problems)
    assert start, "else fit has raised"
    source, bert, tokenizer = start
    mesh = parallel.data_mesh()
    collection = load_collection(config.collection, config.split)
    relevant = dict(zip(collection.queries, collection.relevant_passages(), strict=True))
    positives = {query: passages for query, passages in relevant.items() if len(passages)}
    checks.fit(checks.positives(config, len(positives), len(relevant)))
    queries = [collection.queries[query] for query in positives]
    passages = collection.passages.texts(config.titles)
    groups = TrainingGroups(
        list(positives.values()),
        read_negatives(config.negatives, list(positives), collection.passages, config.negatives_depth),
        len(passages),
        config.group_size,
        config.seed,
    )
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, attention=config.attention)
    objective = Reranking(bert, computation)

    def share(indices: np.ndarray, epochs: np.ndarray) -> mapped.Share:
        drawn = [groups.group(*pair) for pair in zip(indices, epochs, strict=True)]
        of_query = [queries[i] for i in indices for _ in range(config.group_size)]
        token_ids, lengths, first_lengths = encode_pairs(
            tokenizer, of_query, [passages[int(i)] for group in drawn for i in group], config.max_length
        )
        return mapped.Share(token_ids, lengths, {"first_lengths": first_lengths}, {})

    mapped.train(
        "rerank",
        config,
        source,
        tokenizer,
        mesh,
        objective,
        EncoderSettings("cls", False, config.max_length, titles=config.titles),
        config.max_length,
        share,
        len(queries),
        len(passages),
        "pairs",
        profile,
    )


@exits_on_input_error
def main() -> None:
    config, flags = parse_training(__doc__, defaults.RERANKING)
    compile_for_memory()
    hosts.start(flags)
    rerank(config, flags.profile)
    export_run(config.workdir)


if __name__ == "__main__":
    main()
