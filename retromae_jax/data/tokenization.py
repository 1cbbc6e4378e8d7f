"""Tokenizers."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from retromae_jax.checkpoints.hub import resolve
from retromae_jax.errors import InputError, one_line
from retromae_jax.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One of these is in every directory that holds a tokenizer. Without any, transformers makes up an empty vocabulary.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")


def load_tokenizer(name_or_directory: str) -> "PreTrainedTokenizerBase":
    """Loads a fast tokenizer, with the truncation and padding that some are saved with switched off.

    Raises:
        InputError: if the directory or Hub name has no tokenizer, one without cls, sep and pad token, or one that does
            not put the first two around a text.
    """
    # Importing transformers takes seconds, and without this it advises to install PyTorch, which nobody needs here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    directory = resolve(name_or_directory)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"{name_or_directory}: no tokenizer files ({', '.join(TOKENIZER_FILES)}); copy those of the model there, "
            "or name another directory as tokenizer"
        )
    try:
        # Left out, a tokenizer with code of its own would make it ask on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name_or_directory}: no tokenizer can be read there: {one_line(error)}") from error
    if not tokenizer.is_fast or None in (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    ):
        raise InputError(f"{name_or_directory}: the tokenizer needs a tokenizer.json and a cls, a sep and a pad token")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    ids = tokenizer.backend_tokenizer.encode("a").ids
    if ids[:1] + ids[-1:] != [tokenizer.cls_token_id, tokenizer.sep_token_id]:
        raise InputError(
            f"{name_or_directory}: the tokenizer does not put {tokenizer.cls_token} before a text and "
            f"{tokenizer.sep_token} behind it; give its tokenizer.json a post_processor that does "
            "(tokenizers.processors.TemplateProcessing), or name another directory as tokenizer"
        )
    modules = directory / "sentence_bert_config.json"
    if modules.is_file() and read_json(modules).get("do_lower_case"):
        # sentence-transformers puts texts in lower case, whatever the tokenizer does.
        normalizer = tokenizer.backend_tokenizer.normalizer
        steps = [Lowercase()] if normalizer is None else [Lowercase(), normalizer]
        tokenizer.backend_tokenizer.normalizer = NormalizerSequence(steps)
    return tokenizer


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A short hash of the vocabulary: equal where token ids mean the same words."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def encode_batch(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int, prompt: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of texts, [CLS] and [SEP] (RoBERTa's <s> and </s>) included.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: B texts.
        max_length: longer texts are cut; at least 3.
        prompt: stands before every text, and counts among its tokens.

    Returns:
        int32 [B, longest], padded; and the lengths, int32 [B].
    """
    prompted = [prompt + text for text in texts]
    encoded = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(prompted)]
    return _padded(encoded, max_length, tokenizer.pad_token_id)


def add_special_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[np.ndarray], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `encode_batch`, for texts that are token ids without special tokens already."""
    first, last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    return _padded([np.concatenate([first, ids, last]) for ids in texts], max_length, tokenizer.pad_token_id)


def _padded(encoded: Sequence[list[int] | np.ndarray], max_length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    # The library's own truncation is a setting that stays switched on, so texts are cut here.
    lengths = np.array([min(len(ids), max_length) for ids in encoded], np.int32)
    token_ids = np.full((len(encoded), lengths.max(initial=0)), pad_id, np.int32)
    for row, ids, length in zip(token_ids, encoded, lengths, strict=True):
        row[: length - 1] = ids[: length - 1]
        row[length - 1] = ids[-1]
    return token_ids, lengths


# The shortest that pairs may be cut to, in tokens: beside up to four special ones, some of each text are left.
SHORTEST_PAIR = 8


def encode_pairs(
    tokenizer: "PreTrainedTokenizerBase", queries: Sequence[str], passages: Sequence[str], max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of pairs: [CLS] query [SEP] passage [SEP], or as RoBERTa has it, <s> query </s></s> passage </s>.

    A pair that is too long loses the end of its passage; if the query is more than half of it, the longer of the two
    is cut down to the shorter, and then both, as `transformers` does by default (`longest_first`).

    Args:
        tokenizer: from `load_tokenizer`.
        queries: of B pairs. Each is tokenized once, however often it stands there.
        passages: of the same pairs.
        max_length: of a pair in tokens, special ones included.

    Returns:
        int32 [B, longest], padded; the lengths, int32 [B]; and how many tokens from the first on have token type 0,
        int32 [B]: for BERT those before the passage, for RoBERTa all.
    """

    def inner(texts: Sequence[str]) -> list[list[int]]:
        return [
            encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]

    distinct = list(dict.fromkeys(queries))
    tokens_of = dict(zip(distinct, inner(distinct), strict=True))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    separators = [tokenizer.sep_token_id] * (special - 2)
    has_types = 1 in tokenizer.backend_tokenizer.encode("a", "a").type_ids
    pairs, first_lengths = [], []
    for query, passage_ids in zip(queries, inner(list(passages)), strict=True):
        query_ids = tokens_of[query]
        query_length, passage_length = _cut(len(query_ids), len(passage_ids), max_length - special)
        first = [tokenizer.cls_token_id, *query_ids[:query_length], *separators]
        pairs.append([*first, *passage_ids[:passage_length], tokenizer.sep_token_id])
        first_lengths.append(len(first if has_types else pairs[-1]))
    lengths = np.array([len(ids) for ids in pairs], np.int32)
    token_ids = np.full((len(pairs), lengths.max(initial=0)), tokenizer.pad_token_id, np.int32)
    for row, ids in zip(token_ids, pairs, strict=True):
        row[: len(ids)] = ids
    return token_ids, lengths, np.array(first_lengths, np.int32)


def _cut(first: int, second: int, limit: int) -> tuple[int, int]:
    """Lengths of two sequences of together at most `limit` tokens: the longer one is cut, and then both in turns."""
    if first + second <= limit:
        return first, second
    shorter = min(first, second, limit // 2)
    # Of an odd limit that is shared out evenly, the longer one, or else the second, keeps the token left over.
    return (limit - shorter, shorter) if first > second else (shorter, limit - shorter)
