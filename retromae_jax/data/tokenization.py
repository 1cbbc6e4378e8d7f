"""Tokenizers."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retromae_jax.checkpoints.hub import resolve
from retromae_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One of these is in every directory that holds a tokenizer. Without any, transformers makes up an empty vocabulary.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")


def load_tokenizer(name_or_directory: str) -> "PreTrainedTokenizerBase":
    """Loads a fast tokenizer, with the truncation and padding that some are saved with switched off.

    Raises:
        InputError: if the directory or Hub name has no tokenizer, or one without cls, sep and pad token.
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
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name_or_directory}: no tokenizer can be read there: {reason}") from error
    if not tokenizer.is_fast or None in (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    ):
        raise InputError(f"{name_or_directory}: the tokenizer needs a tokenizer.json and a cls, a sep and a pad token")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A short hash of the vocabulary: equal where token ids mean the same words."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def encode_batch(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of texts, [CLS] and [SEP] (RoBERTa's <s> and </s>) included.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: B texts.
        max_length: longer texts are cut; at least 3.

    Returns:
        int32 [B, longest], padded; and the lengths, int32 [B].
    """
    encoded = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(texts))]
    return _padded(encoded, max_length, tokenizer.pad_token_id)


def add_special_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[np.ndarray], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `encode_batch`, for texts that are token ids without special tokens already."""
    first, last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    return _padded([np.concatenate([first, ids, last]) for ids in texts], max_length, tokenizer.pad_token_id)


def _padded(encoded: Sequence[Sequence[int]], max_length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    # The library's own truncation is a setting that stays switched on, so texts are cut here.
    lengths = np.array([min(len(ids), max_length) for ids in encoded], np.int32)
    token_ids = np.full((len(encoded), lengths.max(initial=0)), pad_id, np.int32)
    for row, ids, length in zip(token_ids, encoded, lengths, strict=True):
        row[: length - 1] = ids[: length - 1]
        row[length - 1] = ids[-1]
    return token_ids, lengths
