"""What the recipes need of TPUs, and how long they would take there: by compiling their steps, without a TPU.

    PYTHONPATH=.venv/tpu-compiler python -m benchmarks.scaling --output build/scaling

Each case is a run of `train.compile_check`, minutes long; one whose report is in the output directory is not run again.
The tables that it prints are those of docs/scaling.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from retromae_jax.logging import progress, table

BASE = "google-bert/bert-base-uncased"
LARGE = "google-bert/bert-large-uncased"
MULTILINGUAL_LARGE = "FacebookAI/xlm-roberta-large"


class Case(NamedTuple):
    """A step to compile.

    Attributes:
        recipe: of `configs`.
        topology: slice of TPUs.
        texts: of each chip.
        init: model whose sizes it has.
        options: of the recipe's config.
    """

    recipe: str
    topology: str
    texts: int
    init: str = BASE
    options: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The model and the options, as the tables call them."""
        return " ".join([self.init.rsplit("/", 1)[-1].removesuffix("-uncased"), *self.options])

    @property
    def path(self) -> str:
        """Name of the report's file."""
        return f"{self.recipe} {self.topology} {self.texts} {self.model}.json".replace(":", "-").replace(" ", "_")


CASES = [
    # The same work a chip on one host and on a pod, for each generation.
    *(Case("wiki", name, 32) for name in ("v5e:2x2", "v5e:16x16", "v4:2x2x1", "v4:4x4x4", "v5p:2x2x1", "v5p:4x4x4")),
    *(Case("wiki", name, 32) for name in ("v6e:2x2", "v6e:16x16")),
    # The published batches: of pretraining on 16 chips, of fine-tuning and of a cross-encoder on 4.
    Case("wiki", "v5e:4x4", 16),
    Case("msmarco_pretrain", "v5e:4x4", 64),
    Case("msmarco", "v5e:2x2", 32),
    Case("rerank", "v5e:2x2", 8),
    # Larger models, whole on each chip and split.
    Case("wiki", "v5e:4x4", 16, LARGE),
    *(Case("wiki", "v5e:4x4", 40, LARGE, options) for options in ((), ("fsdp=8",))),
    *(Case("wiki", "v5e:4x4", 32, MULTILINGUAL_LARGE, options) for options in ((), ("fsdp=8",))),
]

# Tokens of the published runs, and how long they took on 8 A100 GPUs (the RetroMAE repository's README). Wikipedia and
# BookCorpus have 3.3 billion words (Devlin et al., 2019, section 3.1), about 1.3 tokens each; 8 epochs. MS MARCO has
# 8,841,823 passages, each counted as the 150 tokens that it is cut to; 20 epochs.
RUNS = {"wiki": (8 * 3.3e9 * 1.3, "about 2 days"), "msmarco_pretrain": (20 * 8_841_823 * 150, "less than 1 day")}


def report_of(case: Case, directory: Path) -> dict:
    """The report of a case, compiled if it is not in the directory yet."""
    path = directory / case.path
    if not path.exists():
        command = [sys.executable, "-m", "train.compile_check", "--config", f"configs/{case.recipe}.py"]
        command += ["--topology", case.topology, "--texts-per-chip", str(case.texts), "--output", str(path)]
        command += ["--init", case.init, *(f"--config.{option}" for option in case.options)]
        finished = subprocess.run(command, capture_output=True, text=True)
        # A step that does not fit ends with an error too, but has a report.
        if not path.exists():
            raise SystemExit(f"{' '.join(command)}\n{finished.stdout}{finished.stderr}")
    return json.loads(path.read_text(encoding="utf-8"))


def needs(case: Case, report: dict) -> dict:
    """A row of the table of what steps need of a chip."""
    row = {
        "recipe": case.recipe,
        "model": case.model,
        "chips": f"{report['chips']} of {case.topology}",
        "texts": case.texts,
        "GiB": f"{report['peak_memory'] / 2**30:.1f} of {report['memory_of_chip'] / 2**30:.0f}",
        "state GiB": f"{report['arguments'] / 2**30:.1f}" if "arguments" in report else "-",
        "fits": "yes" if report["fits"] else "NO",
        "model TFLOP": f"{report['model_flops_per_chip'] / 1e12:.2f}",
    }
    if "exchanges" not in report:
        return row | dict.fromkeys(("XLA's TFLOP", "exchanged MB", "arithmetic ms", "exchange ms", "step ms"), "-")
    return row | {
        "XLA's TFLOP": f"{report['xla_flops_per_chip'] / 1e12:.2f}",
        "exchanged MB": f"{sum(kind['bytes'] for kind in report['exchanges'].values()) / 1e6:,.0f}",
        "arithmetic ms": f"{report['arithmetic_seconds'] * 1e3:.1f}",
        "exchange ms": f"{report['exchange_seconds'] * 1e3:.1f}",
        "step ms": f"{report['estimated_seconds'] * 1e3:.1f}",
    }


def hours(case: Case, report: dict) -> dict:
    """A row of the table of published runs."""
    tokens, published = RUNS[case.recipe]
    hours = tokens / report["tokens_per_second"] / 3600
    return {
        "recipe": case.recipe,
        "chips": f"{report['chips']} of {case.topology}",
        "texts a step": f"{case.texts * report['chips']:,}",
        "tokens/s": f"{report['tokens_per_second']:,.0f}",
        "hours": f"{hours:.1f}",
        "chip hours": f"{hours * report['chips']:,.0f}",
        "published, 8 A100": published,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/scaling"), help="directory of the reports")
    directory = parser.parse_args().output
    directory.mkdir(parents=True, exist_ok=True)
    reports = [(case, report_of(case, directory)) for case in progress(CASES, "compile", "steps")]
    print(table([needs(*pair) for pair in reports]))
    print()
    runs = [(case, report) for case, report in reports if case.recipe in RUNS and case.init == BASE and report["fits"]]
    print(table([hours(*pair) for pair in runs]))


if __name__ == "__main__":
    main()
