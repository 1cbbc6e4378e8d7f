"""Whole-word masks, corruption and decoder visibility, made on the device from token ids and lengths.

The rule is that of the published code. A text of n tokens, [CLS] and [SEP] counted, has a budget of
max(1, round(p * n)) tokens. Its words are taken in random order; a word that would pass the budget is skipped; the
rest are masked until the budget is spent. Special tokens are never masked. The enhanced decoder sees each row
through a mask of its own, drawn from min(n, 256) such masks, and never its own position.

Here all samples of all texts are masked at once. Each word has a random key per sample. Sorting the keys gives the
random order, a cumulative sum of word lengths finds the first words that fit, and so on with the words that fit
into what is left, until none does: exactly what the loop over words does, in two to four rounds.
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_START, CONTINUATION, SPECIAL = 0, 1, 2
DECODER_SAMPLES = 256
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
    token_ids_BxL: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    kinds_V: np.ndarray,
    probability: float,
    samples: int,
) -> jax.Array:
    """Draws independent whole-word masks of each text.

    Args:
        token_ids_BxL: int32 [B, L], [CLS] first, [SEP] last, then padding.
        lengths_B: int32 [B], tokens of each text with [CLS] and [SEP].
        seeds_B: uint32 [B].
        kinds_V: `Vocabulary.kinds`.
        probability: share of the tokens to mask.
        samples: masks to draw for each text, S, at most 65,536.

    Returns:
        bool [B, S, L], True where a token is masked.
    """
    length = token_ids_BxL.shape[1]
    # Python's rounding of the float64 product, which float32 arithmetic on the device would miss at the ties.
    budgets = np.array([max(1, round(probability * n)) for n in range(length + 1)], np.int32)

    position_L = jnp.arange(length, dtype=jnp.int32)
    kind_BxL = jnp.where(position_L < lengths_B[:, None], jnp.asarray(kinds_V)[token_ids_BxL], SPECIAL)
    after_special_BxL = jnp.pad(kind_BxL[:, :-1], ((0, 0), (1, 0)), constant_values=SPECIAL) == SPECIAL
    is_start_BxL = (kind_BxL == WORD_START) | ((kind_BxL == CONTINUATION) & after_special_BxL)
    maskable_BxL = kind_BxL != SPECIAL
    start_BxL = jax.lax.cummax(jnp.where(is_start_BxL, position_L, 0), axis=1)
    in_word_BxLxL = (start_BxL[:, None, :] == position_L[:, None]) & maskable_BxL[:, None, :]
    word_length_BxL = jnp.where(is_start_BxL, jnp.sum(in_word_BxLxL, axis=2, dtype=jnp.int32), 0)

    # Keys are 22 random bits (fewer for rows beyond 1,024 tokens) and the word's position, so no two are equal
    # and none is 0, which stands for "no word seen yet" (position 0 holds [CLS]).
    position_mask = jnp.uint32((1 << max(10, (length - 1).bit_length())) - 1)
    element_SxL = jnp.arange(samples, dtype=jnp.uint32)[:, None] << 16
    random_BxSxL = random_bits.bits(seeds_B[:, None, None], element_SxL + start_BxL[:, None, :].astype(jnp.uint32))
    key_BxSxL = (random_BxSxL & ~position_mask) | start_BxL[:, None, :].astype(jnp.uint32)
    last = jnp.uint32(0xFFFFFFFF)
    sorted_BxSxL = jax.lax.sort(jnp.where(is_start_BxL[:, None, :], key_BxSxL, last), dimension=2)
    sorted_position_BxSxL = jnp.minimum(sorted_BxSxL & position_mask, length - 1).astype(jnp.int32)
    sorted_length_BxSxL = jnp.where(
        sorted_BxSxL == last,
        0,
        jax.vmap(lambda lengths, positions: lengths[positions])(word_length_BxL, sorted_position_BxSxL),
    )
    own_length_BxL = jnp.take_along_axis(word_length_BxL, start_BxL, axis=1)
    own_length_Bx1xL = jnp.where(maskable_BxL, own_length_BxL, length + 1)[:, None, :]

    def words_fit(state):
        return jnp.any(state[2])

    def take_words(state):
        masked_BxSxL, seen_BxS, active_BxS, left_BxS = state
        eligible_BxSxL = (
            (sorted_BxSxL > seen_BxS[..., None])
            & (sorted_length_BxSxL > 0)
            & (sorted_length_BxSxL <= left_BxS[..., None])
        )
        used_BxSxL = jnp.cumsum(jnp.where(eligible_BxSxL, sorted_length_BxSxL, 0), axis=2)
        taken_BxSxL = eligible_BxSxL & (used_BxSxL <= left_BxS[..., None])
        until_BxS = jnp.max(jnp.where(taken_BxSxL, sorted_BxSxL, 0), axis=2)
        masked_BxSxL |= (
            (key_BxSxL > seen_BxS[..., None])
            & (key_BxSxL <= until_BxS[..., None])
            & (own_length_Bx1xL <= left_BxS[..., None])
        )
        left_after_BxS = left_BxS - jnp.max(jnp.where(taken_BxSxL, used_BxSxL, 0), axis=2)
        active_BxS = (until_BxS > 0) & (left_after_BxS > 0)
        return masked_BxSxL, jnp.maximum(seen_BxS, until_BxS), active_BxS, left_after_BxS

    left_BxS = jnp.broadcast_to(jnp.asarray(budgets)[lengths_B][:, None], key_BxSxL.shape[:2])
    # The loop stops when this device's own texts are done, which is why the callers run it per device.
    state = (jnp.zeros_like(key_BxSxL, bool), jnp.zeros_like(left_BxS, jnp.uint32), left_BxS > 0, left_BxS)
    return jax.lax.while_loop(words_fit, take_words, state)[0]


def corrupt(token_ids_BxL: jax.Array, masked_BxL: jax.Array, seeds_B: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """Replaces masked tokens: 80 % by the mask token, 10 % by a random one, 10 % stay.

    Args:
        token_ids_BxL: int32.
        masked_BxL: bool.
        seeds_B: uint32.
        vocabulary: random tokens come from all of it.

    Returns:
        int32 [B, L].
    """
    position_L = jnp.arange(token_ids_BxL.shape[1], dtype=jnp.uint32)
    which_BxL = random_bits.uniform(random_bits.stream(seeds_B, "corruption")[:, None], position_L)
    token_BxL = random_bits.uniform(random_bits.stream(seeds_B, "random token")[:, None], position_L)
    random_BxL = (token_BxL * len(vocabulary.kinds)).astype(token_ids_BxL.dtype)
    replaced_BxL = jnp.where(which_BxL < 0.8, vocabulary.mask_id, jnp.where(which_BxL < 0.9, random_BxL, token_ids_BxL))
    return jnp.where(masked_BxL, replaced_BxL, token_ids_BxL)


def decoder_visibility(masks_BxSxL: jax.Array, lengths_B: jax.Array, seeds_B: jax.Array) -> jax.Array:
    """Which columns each decoder row may look at.

    Args:
        masks_BxSxL: sampled masks; a text of n tokens uses the first min(n, S).
        lengths_B: int32.
        seeds_B: uint32.

    Returns:
        bool [B, L, L]; the diagonal and padding columns are False.
    """
    samples, length = masks_BxSxL.shape[1:]
    position_L = jnp.arange(length, dtype=jnp.int32)
    chance_BxL = random_bits.uniform(seeds_B[:, None], position_L.astype(jnp.uint32))
    sample_BxL = (chance_BxL * jnp.minimum(lengths_B, samples)[:, None]).astype(jnp.int32)
    masked_BxLxL = jax.vmap(lambda masks, rows: masks[rows])(masks_BxSxL, sample_BxL)
    real_Bx1xL = (position_L < lengths_B[:, None])[:, None, :]
    return real_Bx1xL & ~masked_BxLxL & ~jnp.eye(length, dtype=bool)


def encoder_masks(
    token_ids_BxL: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    vocabulary: Vocabulary,
    probability: float,
) -> tuple[jax.Array, jax.Array]:
    """The encoder's masks and its corrupted input: bool [B, L] and int32 [B, L]."""

    def on_device(token_ids_BxL, lengths_B, seeds_B):
        masked_BxL = whole_word_masks(
            token_ids_BxL,
            lengths_B,
            random_bits.stream(seeds_B, "encoder masks"),
            vocabulary.kinds,
            probability,
            samples=1,
        )[:, 0]
        return masked_BxL, corrupt(token_ids_BxL, masked_BxL, seeds_B, vocabulary)

    local = parallel.per_device(on_device, batched=(True, True, True), summed=(False, False))
    return local(token_ids_BxL, lengths_B, seeds_B)


def decoder_masks(
    token_ids_BxL: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    vocabulary: Vocabulary,
    probability: float,
) -> jax.Array:
    """The decoder's visibility, bool [B, L, L]."""

    def on_device(token_ids_BxL, lengths_B, seeds_B):
        masks_BxSxL = whole_word_masks(
            token_ids_BxL,
            lengths_B,
            random_bits.stream(seeds_B, "decoder masks"),
            vocabulary.kinds,
            probability,
            samples=min(token_ids_BxL.shape[1], DECODER_SAMPLES),
        )
        return (decoder_visibility(masks_BxSxL, lengths_B, random_bits.stream(seeds_B, "decoder rows")),)

    local = parallel.per_device(on_device, batched=(True, True, True), summed=(False,))
    return local(token_ids_BxL, lengths_B, seeds_B)[0]
