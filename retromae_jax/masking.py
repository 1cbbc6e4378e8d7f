"""Whole-word masks, corruption and decoder visibility, made on the device from token ids and lengths.

The rule is that of the published code. A text of n tokens, [CLS] and [SEP] counted, has a budget of
max(1, round(p * n)) tokens. Its words are taken in random order; a word that would pass the budget is skipped; the
rest are masked until the budget is spent. Special tokens are never masked. The enhanced decoder sees each row
through a mask of its own, drawn from min(n, 256) such masks, and never its own position.

Here all samples of all texts of a row are masked at once. Each word has a random key per sample, behind the number of
its text. Sorting the keys gives the random order, a cumulative sum of word lengths finds each text's first words that
fit, and so on with the words that fit into what is left, until none does: exactly what the loop over words does, in
two to four rounds.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import parallel, random_bits
from retromae_jax.errors import InputError
from retromae_jax.rows import Rows, take

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_START, CONTINUATION, SPECIAL = 0, 1, 2
DECODER_SAMPLES = 256
# Sorting keys are, from the highest bit on, text, random bits and position. The random bits are always so many that
# masks do not depend on the row that a text is in: 2^-16 of two words' orders are decided by their positions.
TEXT_BITS, RANDOM_BITS, POSITION_BITS = 5, 16, 11
LONGEST_ROW = 2**POSITION_BITS
# Letters of scripts without blanks between words: Thai, Lao, Burmese, Khmer; Kana, Han. (Korean has blanks.)
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What masking needs to know of a tokenizer.

    Attributes:
        kinds: int8 [V]; WORD_START, CONTINUATION (it continues the word of the token before it) or SPECIAL
            (never masked).
        mask_id: id of the mask token.
    """

    kinds: np.ndarray
    mask_id: int

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Classifies a tokenizer's tokens.

        - WordPiece: a token marked with ## continues a word, others begin one.
        - Byte-level BPE: a token that begins with a blank (in its alphabet Ġ, or Ċ, č or ĉ for line ends and tabs)
          begins a word, others continue one. So punctuation belongs to the word before it.
        - SentencePiece: the same with ▁ for the blank; but in scripts without blanks between words (Han, Kana, Thai
          and its neighbours) each token is a word, or no word in them would ever fit a mask.

        The unknown and the mask token are words of their own.

        Raises:
            InputError: if the tokenizer has no mask token, or is of another kind.
        """
        words = tokenizer.get_vocab()
        continues = _continuation_rule(tokenizer)
        kinds = np.full(max(words.values()) + 1, WORD_START, np.int8)
        kinds[[index for word, index in words.items() if continues(word)]] = CONTINUATION
        kinds[tokenizer.all_special_ids] = WORD_START
        kinds[[tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]] = SPECIAL
        if tokenizer.mask_token_id is None or CONTINUATION not in kinds:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path}: whole-word masking needs a mask token and a vocabulary that "
                "tells words from their continuations: WordPiece (##), byte-level BPE (Ġ) or SentencePiece (▁)"
            )
        return cls(kinds, tokenizer.mask_token_id)


def _continuation_rule(tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], bool]:
    """Which tokens of a tokenizer continue a word."""
    # The tokenizer's parts tell its kind. Its vocabulary does not: each mark is a letter or a sign in others.
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = json.dumps([parts["pre_tokenizer"], parts["decoder"]], ensure_ascii=False)
    if prefix := parts["model"].get("continuing_subword_prefix"):
        return lambda token: token.startswith(prefix)
    if '"ByteLevel"' in marks:
        return lambda token: not token.startswith(("Ġ", "Ċ", "č", "ĉ"))
    if '"▁"' in marks:
        return lambda token: not (token.startswith("▁") or _UNSPACED.match(token))
    return lambda token: False


def whole_word_masks(
    rows: Rows, seeds_RxT: jax.Array, kinds_V: np.ndarray, probability: float, samples: int
) -> jax.Array:
    """Draws independent whole-word masks of each text.

    Args:
        rows: the texts.
        seeds_RxT: uint32, each text's seed for these masks.
        kinds_V: `Vocabulary.kinds`.
        probability: share of the tokens to mask.
        samples: masks to draw for each text, S, at most 65,536.

    Returns:
        bool [R, S, L], True where a token is masked.
    """
    length, texts = rows.token_ids_RxL.shape[1], rows.lengths_RxT.shape[1]
    check_row_size(length, texts)
    # Python's rounding of the float64 product, which float32 arithmetic on the device would miss at the ties.
    budgets = np.array([max(1, round(probability * n)) if n else 0 for n in range(length + 1)], np.int32)

    # Words: where they start, and how long they are.
    index_L = jnp.arange(length, dtype=jnp.int32)
    kind_RxL = jnp.where(rows.is_token_RxL, jnp.asarray(kinds_V)[rows.token_ids_RxL], SPECIAL)
    after_special_RxL = jnp.pad(kind_RxL[:, :-1], ((0, 0), (1, 0)), constant_values=SPECIAL) == SPECIAL
    is_start_RxL = (kind_RxL == WORD_START) | ((kind_RxL == CONTINUATION) & after_special_RxL)
    maskable_RxL = kind_RxL != SPECIAL
    start_RxL = jax.lax.cummax(jnp.where(is_start_RxL, index_L, 0), axis=1)
    in_word_RxLxL = (start_RxL[:, None, :] == index_L[:, None]) & maskable_RxL[:, None, :]
    word_length_RxL = jnp.where(is_start_RxL, jnp.sum(in_word_RxLxL, axis=2, dtype=jnp.int32), 0)
    own_length_RxL = jnp.where(maskable_RxL, take(word_length_RxL, start_RxL), length + 1)
    words_RxT = jnp.sum(is_start_RxL[:, None] & (rows.text_RxL[:, None] == np.arange(texts)[:, None]), axis=2)

    # Every token's key is that of its word. No key is 0, which stands for "no word seen yet": position 0 holds [CLS].
    word_position_RxL = take(rows.position_RxL, start_RxL).astype(jnp.uint32)
    element_SxL = jnp.arange(samples, dtype=jnp.uint32)[:, None] << 16
    random_RxSxL = random_bits.bits(rows.of_text(seeds_RxT)[:, None], element_SxL + word_position_RxL[:, None])
    random_RxSxL = (random_RxSxL >> (32 - RANDOM_BITS)) << POSITION_BITS
    text_bits_RxL = rows.text_RxL.astype(jnp.uint32) << (32 - TEXT_BITS)
    key_RxSxL = (text_bits_RxL | start_RxL.astype(jnp.uint32))[:, None] | random_RxSxL

    # The words in random order: first those of the first text, and so on. Behind the words come fillers of length 0.
    filler = jnp.uint32(0xFFFFFFFF)
    sorted_RxSxL = jax.lax.sort(jnp.where(is_start_RxL[:, None], key_RxSxL, filler), dimension=2)
    sorted_start_RxSxL = jnp.minimum(sorted_RxSxL & jnp.uint32((1 << POSITION_BITS) - 1), length - 1)
    sorted_length_RxSxL = jnp.where(sorted_RxSxL == filler, 0, take(word_length_RxL, sorted_start_RxSxL))
    word_ends_RxT = jnp.cumsum(words_RxT, axis=1)
    sorted_text_RxL = jnp.minimum(jnp.sum(index_L[:, None] >= word_ends_RxT[:, None], axis=2), texts - 1)

    def of_words_text(values_RxSxT):
        """Gives each word, in sorted order, the value of its text."""
        return _take_last(values_RxSxT, sorted_text_RxL)

    def of_tokens_text(values_RxSxT):
        return _take_last(values_RxSxT, rows.text_RxL)

    def up_to(values_RxSxL, count_RxT):
        """The value at the last of the first `count` words; 0 where that is none."""
        values_RxSxT = _take_last(values_RxSxL, jnp.maximum(count_RxT - 1, 0))
        return jnp.where(count_RxT[:, None] > 0, values_RxSxT, 0)

    def words_fit(state):
        return jnp.any(state[2])

    def take_words(state):
        masked_RxSxL, seen_RxSxT, _, left_RxSxT = state
        left_RxSxL = of_words_text(left_RxSxT)
        fits_RxSxL = (
            (sorted_RxSxL > of_words_text(seen_RxSxT)) & (sorted_length_RxSxL > 0) & (sorted_length_RxSxL <= left_RxSxL)
        )
        used_RxSxL = jnp.cumsum(jnp.where(fits_RxSxL, sorted_length_RxSxL, 0), axis=2)
        before_RxSxT = up_to(used_RxSxL, word_ends_RxT - words_RxT)
        taken_RxSxL = fits_RxSxL & (used_RxSxL - of_words_text(before_RxSxT) <= left_RxSxL)
        # Keys of later texts are higher, so the highest key so far is a text's own if any of its words was taken.
        until_RxSxL = jax.lax.cummax(jnp.where(taken_RxSxL, sorted_RxSxL, 0), axis=2)
        until_RxSxT = jnp.maximum(up_to(until_RxSxL, word_ends_RxT), seen_RxSxT)
        is_own_RxSxT = (until_RxSxT >> (32 - TEXT_BITS)) == np.arange(texts, dtype=np.uint32)
        until_RxSxT = jnp.where(is_own_RxSxT, until_RxSxT, seen_RxSxT)
        masked_RxSxL |= (
            (key_RxSxL > of_tokens_text(seen_RxSxT))
            & (key_RxSxL <= of_tokens_text(until_RxSxT))
            & (own_length_RxL[:, None] <= of_tokens_text(left_RxSxT))
        )
        spent_RxSxL = jnp.cumsum(jnp.where(taken_RxSxL, sorted_length_RxSxL, 0), axis=2)
        left_RxSxT -= up_to(spent_RxSxL, word_ends_RxT) - up_to(spent_RxSxL, word_ends_RxT - words_RxT)
        return masked_RxSxL, until_RxSxT, (until_RxSxT > seen_RxSxT) & (left_RxSxT > 0), left_RxSxT

    left_RxSxT = jnp.broadcast_to(
        jnp.asarray(budgets)[rows.lengths_RxT][:, None], (len(rows.lengths_RxT), samples, texts)
    )
    # The loop stops when this device's own texts are done, which is why the callers run it per device.
    state = (jnp.zeros_like(key_RxSxL, bool), jnp.zeros_like(left_RxSxT, jnp.uint32), left_RxSxT > 0, left_RxSxT)
    return jax.lax.while_loop(words_fit, take_words, state)[0]


def _take_last(values_RxSxN: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """Elements of the last axis, [R, S, N] at int [R, K] -> [R, S, K]."""
    if values_RxSxN.shape[2] == 1:
        return jnp.broadcast_to(values_RxSxN, (*values_RxSxN.shape[:2], indices_RxK.shape[1]))
    return jax.vmap(lambda values_SxN, indices_K: values_SxN[:, indices_K])(values_RxSxN, indices_RxK)


def check_row_size(length: int, texts: int) -> None:
    """Raises InputError for rows that the masks' sorting keys have no room for."""
    if length > LONGEST_ROW or texts >= 2**TEXT_BITS:
        raise InputError(
            f"rows of {length} tokens with {texts} texts are too large: at most {LONGEST_ROW} tokens and "
            f"{2**TEXT_BITS - 1} texts can be masked"
        )


def corrupt(rows: Rows, masked_RxL: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """Replaces masked tokens: 80 % by the mask token, 10 % by a random one of the vocabulary, 10 % stay.

    Returns:
        int32 [R, L].
    """

    def uniform(purpose: str) -> jax.Array:
        seeds_RxL = rows.of_text(random_bits.stream(rows.seeds_RxT, purpose))
        return random_bits.uniform(seeds_RxL, rows.position_RxL.astype(jnp.uint32))

    which_RxL = uniform("corruption")
    random_RxL = (uniform("random token") * len(vocabulary.kinds)).astype(jnp.int32)
    replaced_RxL = jnp.where(
        which_RxL < 0.8, vocabulary.mask_id, jnp.where(which_RxL < 0.9, random_RxL, rows.token_ids_RxL)
    )
    return jnp.where(masked_RxL, replaced_RxL, rows.token_ids_RxL)


@jax.named_scope("masks")
def encoder_masks(rows: Rows, vocabulary: Vocabulary, probability: float) -> tuple[jax.Array, jax.Array]:
    """The encoder's masks and its corrupted input: bool [R, L] and int32 [R, L]."""

    def on_device(rows):
        seeds_RxT = random_bits.stream(rows.seeds_RxT, "encoder masks")
        masked_RxL = whole_word_masks(rows, seeds_RxT, vocabulary.kinds, probability, samples=1)[:, 0]
        return masked_RxL, corrupt(rows, masked_RxL, vocabulary)

    return parallel.per_device(on_device, batched=(True,), summed=(False, False))(rows)


@jax.named_scope("masks")
def decoder_visibility(rows: Rows, vocabulary: Vocabulary, probability: float) -> jax.Array:
    """Which columns each row of the decoder may look at, bool [R, L, L].

    Each token of a text of n draws one of min(n, 256) masks. It sees the tokens of its own text that are not masked,
    [CLS] and [SEP] always among them, but never itself.
    """

    def on_device(rows):
        length = rows.token_ids_RxL.shape[1]
        samples = min(length, DECODER_SAMPLES)
        seeds_RxT = random_bits.stream(rows.seeds_RxT, "decoder masks")
        masks_RxSxL = whole_word_masks(rows, seeds_RxT, vocabulary.kinds, probability, samples)
        row_seeds_RxL = rows.of_text(random_bits.stream(rows.seeds_RxT, "decoder rows"))
        chance_RxL = random_bits.uniform(row_seeds_RxL, rows.position_RxL.astype(jnp.uint32))
        sample_RxL = (chance_RxL * jnp.minimum(rows.length_RxL, samples)).astype(jnp.int32)
        masked_RxLxL = take(masks_RxSxL, sample_RxL)
        return (rows.visible() & ~masked_RxLxL & ~jnp.eye(length, dtype=bool),)

    return parallel.per_device(on_device, batched=(True,), summed=(False,))(rows)[0]
