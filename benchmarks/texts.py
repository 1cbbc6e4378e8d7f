"""The texts that all systems of a comparison train on, in one order."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retromae_jax.data.blocks import SPECIAL_TOKENS
from retromae_jax.data.retrieval import load_collection
from retromae_jax.errors import InputError
from retromae_jax.retrieval.bm25 import BM25

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Name of a set -> the file under the data directory that it is made of.
TEXT_SETS = {
    "medquad": "medquad/corpus.jsonl",
    "wikitext": "wikitext2_train.txt",
    "full": "medquad/corpus.jsonl",
}
# Name of a set of queries and passages -> its collection under the data directory.
COLLECTIONS = ("medquad", "squad_dev")
# Headings and empty entries are not texts.
FEWEST_WORDS = 6


def load_texts(
    name: str, data: Path, count: int, tokenizer: "PreTrainedTokenizerBase", max_length: int, seed: int
) -> list[str]:
    """Reads a set of texts.

    Args:
        name: a key of `TEXT_SETS`. `medquad` and `wikitext` have texts of all lengths; each of `full` fills a row,
            made of as many texts of medquad as that takes.
        data: the directory.
        count: texts to return; they repeat if the set has fewer.
        tokenizer: from `load_tokenizer`.
        max_length: tokens of a row, [CLS] and [SEP] included. Of a longer text only the words up to there are kept,
            so that no system reads in vain what it would cut off.
        seed: of the order.

    Raises:
        InputError: if the set's file does not exist or has no text.
    """
    path = data / TEXT_SETS[name]
    if not path.is_file():
        raise InputError(f"{path}: the texts {name!r} do not exist; --data DIR names the directory that holds them")
    with path.open(encoding="utf-8") as file:
        found = [json.loads(line)["text"] if path.suffix == ".jsonl" else line.strip() for line in file]
    found = [text for text in found if len(text.split()) >= FEWEST_WORDS]
    if not found:
        raise InputError(f"{path}: no text of {FEWEST_WORDS} words or more")
    order = np.random.default_rng(seed).permutation(len(found))
    texts = (found[index] for index in itertools.cycle(order))
    limit = max_length - SPECIAL_TOKENS
    if name == "full":
        texts = _joined(texts, tokenizer, limit)
    return [_cut(text, tokenizer, limit) for text in itertools.islice(texts, count)]


def load_groups(name: str, data: Path, count: int, group_size: int, seed: int) -> list[list[str]]:
    """Reads queries, each with a relevant passage and with hard negatives, the first that BM25 finds.

    Args:
        name: one of `COLLECTIONS`, a directory with a split `train`.
        data: the directory that holds them.
        count: queries; they repeat if the set has fewer.
        group_size: passages of a query, G.
        seed: of the order.

    Returns:
        For each query 1 + G texts: its own, its relevant passage's, the negatives'.

    Raises:
        InputError: if the collection does not exist or is broken.
    """
    if not (data / name).is_dir():
        raise InputError(f"{data / name}: the collection does not exist; --data DIR names the directory that holds it")
    collection = load_collection(data / name, "train")
    passages = list(collection.passages.texts(titles=False))
    queries = list(zip(collection.queries.values(), collection.relevant_passages(), strict=True))
    order = np.random.default_rng(seed).permutation(len(queries))
    # Some find too few others, because their words are in no other passage.
    chosen = [queries[index] for index in order[: 2 * count]]
    depth = group_size + max(len(relevant) for _, relevant in chosen)
    _, found = BM25(passages).search([query for query, _ in chosen], min(depth, len(passages)))
    groups = []
    for (query, relevant), others in zip(chosen, found, strict=True):
        numbers = [int(relevant[0]), *others[(others >= 0) & ~np.isin(others, relevant)][: group_size - 1]]
        if len(numbers) == group_size:
            groups.append([query, *(passages[number] for number in numbers)])
    if not groups:
        raise InputError(f"{data / name}: no query has {group_size - 1} passages that share a word with it")
    return list(itertools.islice(itertools.cycle(groups), count))


def neighbours_score(embeddings: np.ndarray) -> float:
    """The mean inner product of each of some embeddings, [N, D], with the next: one number to compare systems by."""
    return float(np.sum(embeddings[1:] * embeddings[:-1], axis=1).mean())


def _joined(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", limit: int) -> Iterator[str]:
    """Texts of at least `limit` tokens each, made of one or several."""
    parts, tokens = [], 0
    for text in texts:
        parts.append(text)
        tokens += len(_encode(text, tokenizer))
        if tokens >= limit:
            yield " ".join(parts)
            parts, tokens = [], 0


def _cut(text: str, tokenizer: "PreTrainedTokenizerBase", limit: int) -> str:
    """The text up to the end of the word that its token number `limit` belongs to."""
    encoding = _encode(text, tokenizer)
    if len(encoding) <= limit:
        return text
    return text[: encoding.word_to_chars(encoding.word_ids[limit - 1])[1]]


def _encode(text: str, tokenizer: "PreTrainedTokenizerBase"):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
