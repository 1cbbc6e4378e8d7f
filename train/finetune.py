"""Fine-tunes an encoder for retrieval: queries against their relevant passages, others in the batch, hard negatives.

    python -m train.finetune --config configs/msmarco.py --config.init runs/wiki

The same command runs on a TPU pod, on GPUs and on a CPU. Started again with the same --config.workdir, it goes on
from the newest checkpoint there.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import hosts, parallel
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.batches import BatchOrder, number_of_steps, padded_length
from retromae_jax.data.groups import TrainingGroups
from retromae_jax.data.prepared import TokenizedTexts, is_prepared, load_prepared
from retromae_jax.data.retrieval import PassageTexts, load_collection, read_negatives
from retromae_jax.data.teacher_scores import MISSING, TeacherScores, read_teacher_scores, with_scores
from retromae_jax.data.tokenization import add_special_tokens, encode_batch, load_tokenizer
from retromae_jax.errors import exits_on_input_error
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import say
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import POOLINGS
from retromae_jax.objectives import finetuning_objective
from retromae_jax.objectives.distillation import LOSSES
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import finetuning_step, initial_state
from train import checks, loop
from train.command_line import parse_training
from train.summary import summary


def finetune(config: ConfigDict, profile: bool = False) -> None:
    """Trains as `config` (see `configs.defaults`) says; `profile` traces a few steps.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Settings, model and data, checked against each other before any work.
    source = open_model(config.init) if config.init else None
    bert = checks.model_sizes(config, source)
    tokenizer = load_tokenizer(checks.tokenizer_of(config, source))
    checks.fit(
        checks.whole_numbers(config, batch_size=1, group_size=1, length_buckets=1, log_every=1, checkpoint_every=1),
        checks.whole_numbers(config, negatives_depth=1, num_steps=0, checkpoints_to_keep=1, seed=0),
        checks.whole_numbers(config, gradient_cache_chunk=0, contrastive_weight=0),
        checks.shares(config, "warmup_fraction"),
        checks.saving(config),
        checks.watching(config),
        checks.batch(config),
        checks.known("pooling", config.pooling, POOLINGS),
        checks.known("compute_dtype", config.compute_dtype, checks.DTYPES),
        checks.known("missing_scores", config.missing_scores, MISSING),
        checks.known("distillation_loss", config.distillation_loss, LOSSES),
        checks.distillation(config),
        checks.dimensions("matryoshka_dims", config.matryoshka_dims, bert),
        checks.vocabulary(tokenizer, bert),
        checks.positions("query_max_length", config.query_max_length, bert),
        checks.positions("passage_max_length", config.passage_max_length, bert),
        checks.room(config, bert),
    )
    mesh = parallel.data_mesh()
    data = load(config)
    if isinstance(data.passages, TokenizedTexts):
        encode = add_special_tokens
        checks.fit(checks.ids_in_vocabulary(str(data.passages.directory), data.passages.id_range(), tokenizer))
    else:
        encode = encode_batch
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, attention=config.attention)
    objective = finetuning_objective(config).from_config(config, bert, computation)
    graph, shapes = parameters.structure(objective.model)

    order = BatchOrder(len(data.trained), config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, len(data.trained), config.batch_size)

    # Each process reads its own share of the batch only, but all must pad to the same length: that of the longest text
    # of the whole batch, which none of them knows. The devices find it out, asked for one batch ahead: the answer is
    # there when it is needed, and neither hosts nor devices wait for each other.
    own = parallel.local_rows(config.batch_size)
    max_lengths = {"query": config.query_max_length, "passage": config.passage_max_length}
    longest_of_all = jax.jit(lambda longest: longest.max(axis=0), out_shardings=parallel.replicated(mesh))

    @functools.lru_cache(maxsize=2)
    def share_of_step(step: int) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]], jax.Array]:
        queries = data.trained[order.indices(step)[own]]
        drawn = np.stack([data.groups.group(*pair) for pair in zip(queries, order.epochs(step)[own], strict=True)])
        arrays = {"samples": order.samples(step)[own].astype(np.uint32)}
        if config.mask_false_negatives:
            arrays["passages"] = drawn.reshape(-1).astype(np.int32)
            arrays["relevant"] = data.groups.relevant_to(queries)
        if data.teacher_scores is not None:
            arrays["teacher_scores"] = np.stack(list(map(data.teacher_scores.of, queries, drawn)))
        texts = {
            "query": [data.queries[query] for query in queries],
            "passage": [data.passages[int(passage)] for passage in drawn.flat],
        }
        tokens = {kind: encode(tokenizer, texts[kind], length) for kind, length in max_lengths.items()}
        longest = np.array([[token_ids.shape[1] for token_ids, _ in tokens.values()]] * jax.local_device_count())
        return arrays, tokens, longest_of_all(parallel.place_batch(mesh, {"longest": longest})["longest"])

    def batch_of_step(step: int) -> loop.Batch:
        (arrays, tokens, longest), _ = share_of_step(step), share_of_step(step + 1)
        arrays = dict(arrays)
        for (kind, (token_ids, lengths)), most in zip(tokens.items(), np.asarray(longest), strict=True):
            length = padded_length(int(most), max_lengths[kind], config.length_buckets)
            padding = ((0, 0), (0, length - token_ids.shape[1]))
            arrays[f"{kind}_ids"] = np.pad(token_ids, padding, constant_values=tokenizer.pad_token_id)
            arrays[f"{kind}_lengths"] = lengths
        split = {name: x.reshape(jax.local_device_count(), -1, *x.shape[1:]) for name, x in arrays.items()}
        # The other processes' texts are about as long.
        flops = jax.process_count() * sum(objective.flops(lengths) for _, lengths in tokens.values())
        return loop.Batch(split, config.batch_size, flops, order.indices(step))

    # The state: from a checkpoint of this run, from `init`, or fresh.
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_fraction, num_steps)
    optimizer = adamw(schedule, config.weight_decay, config.clip_norm)
    run = Run(config.workdir, config.checkpoints_to_keep)
    sizes = {"queries": len(data.trained), "passages": len(data.passages)}
    run.begin("finetune", bert, objective.settings, config.to_dict(), sizes, tokenizer)
    # `jax.pmap` takes a state that is each process's own.
    state = initial_state(objective.model, shapes, source, optimizer, config.seed, parallel.local_mesh())
    state = run.restore(state)
    batch = {"queries": config.batch_size, "passages": config.batch_size * config.group_size}
    facts = {"data": f"{len(data.trained):,} queries, {len(data.passages):,} passages"}
    flops_per_second = mesh.size * device_flops_per_second(jax.local_devices()[0], computation.dtype)
    say(summary(mesh, state, num_steps, batch, facts, batch_of_step(int(state.step)).flops, flops_per_second))
    step = finetuning_step(objective, graph, optimizer, config.seed)
    loop.train(
        config,
        run,
        state,
        num_steps,
        step,
        batch_of_step,
        "queries",
        schedule,
        flops_per_second=flops_per_second,
        profile=profile,
    )


class Data(NamedTuple):
    """What is trained on.

    Attributes:
        queries: texts of the queries that have relevant passages; token ids, if the passages are token ids.
        trained: numbers of the queries to train on.
        passages: texts of all passages.
        groups: draws each query's passages.
        teacher_scores: of queries and passages; None without distillation.
    """

    queries: list[str] | list[np.ndarray]
    trained: np.ndarray
    passages: PassageTexts | TokenizedTexts
    groups: TrainingGroups
    teacher_scores: TeacherScores | None


def load(config: ConfigDict) -> Data:
    """Reads what a config names.

    Raises:
        InputError: if a file is missing or broken, or they do not belong together.
    """
    read = load_prepared if is_prepared(config.collection) else load_collection
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
    return Data(queries, trained, passages.texts(config.titles), groups, scores)


@exits_on_input_error
def main() -> None:
    config, flags = parse_training(__doc__, defaults.FINETUNING)
    hosts.start(flags)
    finetune(config, flags.profile)


if __name__ == "__main__":
    main()
