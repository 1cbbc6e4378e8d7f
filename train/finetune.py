"""Fine-tunes an encoder for retrieval: queries against their relevant passages, others in the batch, hard negatives.

    python -m train.finetune --config configs/msmarco.py --config.init runs/wiki

The same command runs on a TPU pod, on GPUs and on a CPU. Started again with the same --config.workdir, it goes on
from the newest checkpoint there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import hosts, parallel
from retromae_jax.data.groups import TrainingGroups
from retromae_jax.data.prepared import TokenizedTexts, is_prepared, load_prepared
from retromae_jax.data.retrieval import Collection, load_collection, read_negatives
from retromae_jax.data.teacher_scores import MISSING, TeacherScores, read_teacher_scores, with_scores
from retromae_jax.data.tokenization import add_special_tokens, encode_batch
from retromae_jax.errors import exits_on_input_error
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import POOLINGS
from retromae_jax.objectives import finetuning_objective
from retromae_jax.objectives.distillation import LOSSES
from retromae_jax.training import compile_for_memory
from train import checks, mapped
from train.command_line import parse_training
from train.export import export_run
from train.probe import Probe

# From texts, or their token ids without special ones, to token ids and lengths.
Encode = Callable[..., tuple[np.ndarray, np.ndarray]]


def finetune(config: ConfigDict, profile: bool = False) -> None:
    """Trains as `config` (see `configs.defaults`) says; `profile` traces a few steps.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Settings, model and data, checked against each other before any work.
    start, no_start = checks.attempt(checks.start, config)
    problems = [
        no_start,
        checks.existing(config, "collection", "negatives", "teacher_scores"),
        checks.whole_numbers(config, batch_size=1, group_size=1, shape_buckets=1, log_every=1, checkpoint_every=1),
        checks.whole_numbers(config, negatives_depth=1, num_steps=0, checkpoints_to_keep=1, seed=0),
        checks.whole_numbers(config, gradient_cache_chunk=0, contrastive_weight=0, projection=0, lexical_top_k=0),
        checks.above_zero(config, "learning_rate", "num_epochs", "clip_norm", "temperature"),
        checks.shares(config, "warmup_fraction"),
        checks.saving(config),
        checks.watching(config),
        checks.probe(config),
        checks.batch(config),
        checks.known("pooling", config.pooling, POOLINGS),
        checks.known("compute_dtype", config.compute_dtype, checks.DTYPES),
        checks.known("missing_scores", config.missing_scores, MISSING),
        checks.known("distillation_loss", config.distillation_loss, LOSSES),
        checks.distillation(config),
    ]
    if start:
        problems += [
            checks.one_encoder(config, start.source),
            checks.projection(config, start.source),
            checks.lexical(config, start.source, start.bert),
            checks.dimensions(config, start.bert),
            checks.vocabulary(start.tokenizer, start.bert),
            checks.positions("query_max_length", config.query_max_length, start.bert),
            checks.positions("passage_max_length", config.passage_max_length, start.bert),
            checks.prompt("query", config, start.tokenizer),
            checks.prompt("passage", config, start.tokenizer),
            checks.attention(config, start.bert),
            checks.room(config, start.bert),
        ]
    checks.fit(*problems)
    assert start, "else fit has raised"
    source, bert, tokenizer = start
    mesh = parallel.data_mesh()
    data = load(config)
    encode_queries: Encode
    encode_passages: Encode
    if isinstance(data.passages, TokenizedTexts):
        encode_queries = encode_passages = add_special_tokens
        directory = str(data.passages.directory)
        checks.fit(
            checks.ids_in_vocabulary(directory, data.passages.id_range(), tokenizer),
            checks.no_prompts(config, directory),
        )
    else:
        encode_queries = functools.partial(encode_batch, prompt=config.query_prompt)
        encode_passages = functools.partial(encode_batch, prompt=config.passage_prompt)
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, attention=config.attention)
    objective = finetuning_objective(config).from_config(config, bert, computation)
    probe = None
    if config.probe_collection:
        probe = Probe(config, tokenizer, bert, objective.settings, parallel.local_mesh())

    def share(indices: np.ndarray, epochs: np.ndarray) -> mapped.Share:
        queries = data.trained[indices]
        drawn = np.stack([data.groups.group(*pair) for pair in zip(queries, epochs, strict=True)])
        arrays = {}
        if config.mask_false_negatives:
            arrays["passages"] = drawn.reshape(-1).astype(np.int32)
            arrays["relevant"] = data.groups.relevant_to(queries)
        if data.teacher_scores is not None:
            arrays["teacher_scores"] = np.stack(list(map(data.teacher_scores.of, queries, drawn)))
        texts = together(
            *encode_queries(tokenizer, [data.queries[query] for query in queries], config.query_max_length),
            *encode_passages(
                tokenizer, [data.passages[int(passage)] for passage in drawn.flat], config.passage_max_length
            ),
        )
        return mapped.Share(*texts, {}, arrays)

    mapped.train(
        "finetune",
        config,
        source,
        tokenizer,
        mesh,
        objective,
        objective.settings,
        max(config.query_max_length, config.passage_max_length),
        share,
        len(data.trained),
        len(data.passages),
        "passages",
        profile,
        probe,
    )


def together(
    query_ids_QxL: np.ndarray, query_lengths_Q: np.ndarray, passage_ids_PxM: np.ndarray, passage_lengths_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each of Q queries with its group of G passages behind it.

    Args:
        query_ids_QxL: int32, padded.
        query_lengths_Q: tokens of each.
        passage_ids_PxM: int32, of the queries' groups behind each other, Q * G, padded.
        passage_lengths_P: tokens of each.

    Returns:
        Token ids, int32 [Q * (1 + G), longest], and lengths, [Q * (1 + G)].
    """
    queries, group = len(query_ids_QxL), len(passage_ids_PxM) // len(query_ids_QxL)
    longest = max(query_ids_QxL.shape[1], passage_ids_PxM.shape[1])
    token_ids = np.zeros((queries, 1 + group, longest), np.int32)
    token_ids[:, 0, : query_ids_QxL.shape[1]] = query_ids_QxL
    token_ids[:, 1:, : passage_ids_PxM.shape[1]] = passage_ids_PxM.reshape(queries, group, -1)
    lengths = np.concatenate([query_lengths_Q[:, None], passage_lengths_P.reshape(queries, group)], axis=1)
    return token_ids.reshape(-1, longest), lengths.reshape(-1)


class Data(NamedTuple):
    """What is trained on.

    Attributes:
        queries: texts of the queries that have relevant passages; token ids, if the passages are token ids.
        trained: numbers of the queries to train on.
        passages: texts of all passages.
        groups: draws each query's passages.
        teacher_scores: of queries and passages; None without distillation.
    """

    queries: Sequence
    trained: np.ndarray
    passages: Sequence
    groups: TrainingGroups
    teacher_scores: TeacherScores | None


def load(config: ConfigDict) -> Data:
    """Reads what a config names.

    Raises:
        InputError: if a file is missing or broken, or they do not belong together.
    """
    read: Callable[[str, str], Collection] = load_prepared if is_prepared(config.collection) else load_collection
    collection = read(config.collection, config.split)
    passages = collection.passages
    judged = dict(zip(collection.queries, collection.relevant_passages(), strict=True))
    query_ids = [query for query, relevant in judged.items() if len(relevant)]
    checks.fit(checks.positives(config, len(query_ids), len(judged)))
    relevant = [judged[query] for query in query_ids]
    negatives = read_negatives(config.negatives, query_ids, passages, config.negatives_depth)
    trained, positives, scores = np.arange(len(query_ids)), relevant, None
    if config.teacher_scores:
        scores = read_teacher_scores(config.teacher_scores, query_ids, passages)
        trained, positives, negatives = with_scores(
            scores, query_ids, passages.ids, relevant, negatives, config.group_size, config.missing_scores
        )
    groups = TrainingGroups(positives, negatives, len(passages), config.group_size, config.seed, relevant)
    queries = [collection.queries[query] for query in query_ids]
    return Data(queries, trained, passages.texts(config.titles, config.title_separator), groups, scores)


@exits_on_input_error
def main() -> None:
    config, flags = parse_training(__doc__, defaults.FINETUNING)
    compile_for_memory()
    hosts.start(flags)
    finetune(config, flags.profile)
    export_run(config.workdir)


if __name__ == "__main__":
    main()
