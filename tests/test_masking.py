"""Masks against an independent plain-Python version of the published rule."""

import random
from collections import Counter

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from retromae_jax import masking, parallel
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.masking import CONTINUATION, SPECIAL, WORD_START, Vocabulary
from tests.texts import rows

CLS, SEP, PAD, MASK, UNKNOWN, FIRST, CONTINUED = 0, 1, 2, 3, 4, 5, 500
KINDS = np.full(1000, WORD_START, np.int8)
KINDS[[CLS, SEP, PAD]] = SPECIAL
KINDS[CONTINUED:] = CONTINUATION
VOCABULARY = Vocabulary(KINDS, MASK)


def text(word_lengths):
    """Token ids of a text whose words have these lengths."""
    ids = [CLS]
    for number, length in enumerate(word_lengths):
        ids += [FIRST + number % 400] + [CONTINUED + number % 400] * (length - 1)
    return [*ids, SEP]


def plain_whole_word_mask(ids, probability, generator):
    """The published loop over words: token positions that are masked."""
    words = []
    for position, token in enumerate(ids):
        if token in (CLS, SEP):
            continue
        if words and KINDS[token] == CONTINUATION:
            words[-1].append(position)
        else:
            words.append([position])
    generator.shuffle(words)
    budget = max(1, round(len(ids) * probability))
    masked = []
    for word in words:
        if len(masked) >= budget:
            break
        if len(masked) + len(word) <= budget:
            masked += word
    return masked


def device_masks(ids, probability, samples, length=None, copies=1, kinds=KINDS):
    """Masks of copies of one text, bool [copies * samples, L]."""
    length = length or len(ids)
    token_ids = np.full((copies, length), PAD, np.int32)
    token_ids[:, : len(ids)] = ids
    texts = rows(token_ids, np.full(copies, len(ids)))
    draw = jax.jit(lambda texts: masking.whole_word_masks(texts, texts.seeds_RxT, kinds, probability, samples))
    return np.asarray(draw(texts)).reshape(-1, length)


WORD_LENGTHS = [1, 2, 1, 3, 1, 1, 4, 1, 2, 1, 1, 1, 5, 1, 2, 1, 3, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("samples", [120_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("probability", [0.3, 0.5])
def test_statistics_equal_those_of_the_published_loop(probability, samples):
    ids = text(WORD_LENGTHS)
    masks = device_masks(ids, probability, 1000, copies=samples // 1000)
    generator = random.Random(0)
    plain = np.zeros_like(masks)
    for row in plain:
        row[plain_whole_word_mask(ids, probability, generator)] = True

    # The distribution of the number of masked tokens.
    found, expected = (Counter(m.sum(axis=1).tolist()) for m in (masks, plain))
    for count in found.keys() | expected.keys():
        share = expected[count] / samples
        assert abs(found[count] / samples - share) < 4 * np.sqrt(2 * share * (1 - share) / samples) + 1e-4
    # How often each position is masked, and each pair together; of a million samples, 1 % off is about 5 sigma.
    for power in (
        lambda m: m.mean(axis=0),
        lambda m: m.astype(np.float32).T @ m.astype(np.float32) / samples,
    ):
        a, b = power(masks), power(plain)
        sigma = np.sqrt(2 * np.maximum(b * (1 - b), 1e-4) / samples)
        assert np.max(np.abs(a - b) / sigma) < 4.8
    # Nearly all rows differ.
    assert abs(len(np.unique(masks, axis=0)) - len(np.unique(plain, axis=0))) < 0.01 * samples


def test_words_are_masked_whole_and_special_tokens_never():
    ids = text(WORD_LENGTHS)
    masks = device_masks(ids, 0.5, 500, length=64)
    start = 1
    for length in WORD_LENGTHS:
        assert np.all(masks[:, start : start + length] == masks[:, [start]])
        start += length
    assert not masks[:, 0].any()
    assert not masks[:, len(ids) - 1 :].any()


@pytest.mark.parametrize("probability", [0.15, 0.3, 0.5])
def test_single_token_words_use_the_budget_exactly(probability):
    lengths = np.arange(3, 61, dtype=np.int32)
    token_ids = np.full((len(lengths), 60), PAD, np.int32)
    for row, length in zip(token_ids, lengths, strict=True):
        row[:length] = text([1] * (length - 2))
    texts = rows(token_ids, lengths)
    masks = masking.whole_word_masks(texts, texts.seeds_RxT, KINDS, probability, samples=4)
    budgets = [min(max(1, round(probability * int(n))), int(n) - 2) for n in lengths]
    np.testing.assert_array_equal(np.sum(masks, axis=2), np.repeat(budgets, 4).reshape(-1, 4))


def test_edge_cases():
    assert device_masks(text([1]), 0.3, 8).sum(axis=1).tolist() == [1] * 8
    # One giant word passes the budget and stays whole, as published.
    assert not device_masks(text([30]), 0.3, 8).any()
    # ... but a small word beside it is always masked.
    assert np.all(device_masks(text([30, 1]), 0.3, 8).sum(axis=1) == 1)
    assert not device_masks([CLS, SEP], 0.5, 8).any()
    assert not device_masks([CLS, CLS, SEP, SEP], 0.5, 8).any()
    # A continuation at the beginning of the text is a word of its own.
    assert device_masks([CLS, CONTINUED, SEP], 0.5, 8).sum() == 8
    full = device_masks(text([1] * 510), 0.5, 256)
    assert np.all(full.sum(axis=1) == 256)
    assert np.all(device_masks(text([2] * 255), 0.5, 16).sum(axis=1) == 256)


def test_masks_depend_on_neither_padding_nor_batch():
    ids = text(WORD_LENGTHS)
    short, long = device_masks(ids, 0.5, 32), device_masks(ids, 0.5, 32, length=100)
    np.testing.assert_array_equal(short, long[:, : len(ids)])


def test_corruption_replaces_80_10_10():
    batch, length = 256, 512
    token_ids = np.full((batch, length), FIRST, np.int32)
    masked = np.zeros((batch, length), bool)
    masked[:, ::2] = True
    corrupted = np.asarray(jax.jit(lambda *a: masking.corrupt(*a, VOCABULARY))(rows(token_ids), masked))
    assert np.all(corrupted[~masked] == FIRST)
    changed = corrupted[masked]
    total = changed.size
    vocabulary = len(KINDS)
    # A random token may by chance be the mask token or the token itself.
    expected = {MASK: 0.8 + 0.1 / vocabulary, FIRST: 0.1 + 0.1 / vocabulary}
    for token, share in expected.items():
        assert abs(np.mean(changed == token) - share) < 4.5 * np.sqrt(share * (1 - share) / total)
    others = changed[(changed != MASK) & (changed != FIRST)]
    counts = np.bincount(others, minlength=vocabulary)
    counts = np.delete(counts, [MASK, FIRST])
    mean = counts.mean()
    assert np.sum((counts - mean) ** 2 / mean) < 998 + 4.5 * np.sqrt(2 * 998)


def test_decoder_rows_see_half_and_never_themselves():
    ids = text(WORD_LENGTHS * 4)
    batch, length = 64, len(ids) + 7
    token_ids = np.full((batch, length), PAD, np.int32)
    token_ids[:, : len(ids)] = ids
    texts = rows(token_ids, np.full(batch, len(ids)))
    visible = np.asarray(jax.jit(lambda texts: masking.decoder_visibility(texts, VOCABULARY, 0.5))(texts))
    n = len(ids)
    assert not visible[:, :, n:].any()
    assert not np.any(np.diagonal(visible, axis1=1, axis2=2))
    assert np.all(visible[:, 1:n, 0]) and np.all(visible[:, : n - 1, n - 1])

    generator = random.Random(0)
    plain = np.zeros((batch, n, n), bool)
    distinct_plain = []
    for mask in plain:
        drawn = [plain_whole_word_mask(ids, 0.5, generator) for _ in range(min(n, 256))]
        picked = [generator.randint(0, min(n, 256) - 1) for _ in range(n)]
        distinct_plain.append(len(set(picked)))
        for i, row in enumerate(mask):
            row[drawn[picked[i]]] = True
        mask |= np.eye(n, dtype=bool)
    a, b = visible[:, :n, :n].mean(), 1 - plain.mean()
    assert abs(a - b) < 0.002
    # How many different masks the rows of a text share: n draws from n samples.
    inner = ~np.eye(n, dtype=bool)
    distinct = []
    for text_rows in visible[:, :n, :n]:
        masked = ~text_rows & inner
        # Rows with the same mask differ at most in their own diagonal element: compare them without both columns.
        representatives = []
        for i in range(n):
            for j in representatives:
                if not np.any(np.delete(masked[i] ^ masked[j], [i, j])):
                    break
            else:
                representatives.append(i)
        distinct.append(len(representatives))
    assert abs(np.mean(distinct) - np.mean(distinct_plain)) < 4.5 * np.std(distinct_plain) / np.sqrt(batch / 2)


def test_same_masks_on_any_number_of_devices():
    batch, length = 16, 48
    generator = np.random.default_rng(0)
    token_ids = generator.integers(FIRST, 999, (batch, length)).astype(np.int32)
    token_ids[:, 0] = CLS
    lengths = generator.integers(3, length + 1, batch).astype(np.int32)
    for row, n in zip(token_ids, lengths, strict=True):
        row[n - 1], row[n:] = SEP, PAD
    texts = rows(token_ids, lengths)

    def masks(texts):
        return (
            *masking.encoder_masks(texts, VOCABULARY, 0.3),
            masking.decoder_visibility(texts, VOCABULARY, 0.5),
        )

    expected = jax.jit(masks)(texts)
    mesh = parallel.data_mesh()
    with jax.set_mesh(mesh):
        found = jax.jit(masks)(jax.device_put(texts, parallel.over_batch(mesh)))
    for a, b in zip(found, expected, strict=True):
        assert len(a.sharding.device_set) == 8
        np.testing.assert_array_equal(a, b)


def test_texts_that_share_a_row_are_masked_as_on_their_own():
    generator = np.random.default_rng(0)
    texts = [text(generator.integers(1, 4, words)) for words in (1, 9, 4, 14, 2, 7)]
    alone, alone_lengths = np.full((6, 64), PAD, np.int32), [len(ids) for ids in texts]
    for row, ids in zip(alone, texts, strict=True):
        row[: len(ids)] = ids
    together, lengths, samples = np.full((2, 100), PAD, np.int32), np.zeros((2, 4), int), np.zeros((2, 4), int)
    places = {}
    for row, numbers in enumerate(([3, 0, 1], [5, 4, 2])):
        start = 0
        for slot, number in enumerate(numbers):
            length = len(texts[number])
            together[row, start : start + length] = texts[number]
            lengths[row, slot], samples[row, slot] = length, number
            places[number] = row, slice(start, start + length)
            start += length

    def masks(texts):
        drawn = masking.whole_word_masks(texts, texts.seeds_RxT, KINDS, 0.5, samples=64)
        return drawn, *masking.encoder_masks(texts, VOCABULARY, 0.3), masking.decoder_visibility(texts, VOCABULARY, 0.5)

    one_a_row = jax.jit(masks)(rows(alone, alone_lengths))
    shared = jax.jit(masks)(rows(together, lengths, samples))
    for number, (row, here) in places.items():
        n = alone_lengths[number]
        np.testing.assert_array_equal(shared[0][row, :, here], one_a_row[0][number, :, :n])
        np.testing.assert_array_equal(shared[1][row, here], one_a_row[1][number, :n])
        np.testing.assert_array_equal(shared[2][row, here], one_a_row[2][number, :n])
        # Each row draws from min(n, 256) masks in both, and looks at its own text only.
        np.testing.assert_array_equal(shared[3][row, here, here], one_a_row[3][number, :n, :n])
        elsewhere = np.ones(100, bool)
        elsewhere[here] = False
        assert not np.any(shared[3][row, here][:, elsewhere])


def test_rows_that_are_too_large_for_the_masks_are_refused():
    with pytest.raises(InputError, match="rows of 4096 tokens with 1 texts are too large"):
        masking.check_row_size(4096, 1)
    with pytest.raises(InputError, match="with 32 texts"):
        masking.check_row_size(512, 32)


def words_of(tokenizer, vocabulary, text):
    """A text's tokens, those of one word joined by +."""
    words = []
    for index in tokenizer(text)["input_ids"][1:-1]:
        token = tokenizer.convert_ids_to_tokens(index)
        if vocabulary.kinds[index] == CONTINUATION and words:
            words[-1] += f"+{token}"
        else:
            assert vocabulary.kinds[index] != SPECIAL
            words.append(token)
    return words


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"], indirect=True)
def test_words_of_every_kind_of_tokenizer_are_masked_whole(model_type_tokenizer):
    tokenizer = load_tokenizer(str(model_type_tokenizer))
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.mask_id == tokenizer.mask_token_id
    for token in ("cls", "sep", "pad", "mask", "unk"):
        kind = SPECIAL if token in ("cls", "sep", "pad") else WORD_START
        assert vocabulary.kinds[getattr(tokenizer, f"{token}_token_id")] == kind
    words = "unbelievably compact dogs sleep tokenwise and bark"
    encoding = tokenizer(words)
    ids = encoding["input_ids"]
    assert len(ids) > 1.5 * len(words.split())
    # The number of each token's word, counted in blanks.
    word = [words[: encoding.token_to_chars(i).end].count(" ") for i in range(1, len(ids) - 1)]
    masks = device_masks(ids, 0.5, 64, kinds=vocabulary.kinds)[:, 1:-1]
    for number in set(word):
        of_word = masks[:, np.array(word) == number]
        assert np.all(of_word == of_word[:, :1]) and 0 < of_word.mean() < 1


def test_words_of_byte_level_tokenizers(byte_level_directory):
    tokenizer = load_tokenizer(str(byte_level_directory))
    vocabulary = Vocabulary.of(tokenizer)
    assert words_of(tokenizer, vocabulary, "reads the text,\nxyz") == ["re+ads", "Ġthe", "Ġtext+,", "Ċ+x+y+z"]


def test_words_of_sentencepiece_tokenizers(sentencepiece_directory):
    tokenizer = load_tokenizer(str(sentencepiece_directory))
    vocabulary = Vocabulary.of(tokenizer)
    assert words_of(tokenizer, vocabulary, "reads text, 우리는 q") == [
        "▁+re+a+d+s",
        "▁+te+x+t+,",
        "▁+우+리+는",
        "▁",
        "<unk>",
    ]
    # Without blanks between words, each token is one; punctuation follows it.
    assert words_of(tokenizer, vocabulary, "我们读书。") == ["▁", "我", "们", "读", "书+。"]
    assert words_of(tokenizer, vocabulary, "は本を") == ["▁", "は", "本", "を"]
    assert words_of(tokenizer, vocabulary, "คน") == ["▁", "ค", "น"]


def test_tokenizers_that_do_not_tell_words_are_refused():
    made = Tokenizer(models.WordLevel({"a": 0, "[MASK]": 1, "[CLS]": 2, "##b": 3}, unk_token="a"))
    names = {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[CLS]", "pad_token": "[CLS]"}
    with pytest.raises(InputError, match="whole-word masking needs a mask token and a vocabulary that tells words"):
        Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=made, **names))
