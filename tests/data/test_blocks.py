"""Sentences, packing, and blocks on disk."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from retromae_jax.data.blocks import (
    TokenBlocks,
    block_lengths,
    pack,
    sentences,
    write_blocks,
    write_description,
)
from retromae_jax.data.text import Document
from retromae_jax.errors import InputError

# Sentences.


@pytest.mark.parametrize(
    "expected",
    [
        ["One ends.", "Two follows!", "Is this three?", "Yes."],
        ["Dr. Smith and Mrs. J. R. Jones met St. Paul on Jan. 5, vol. 3, pp. 12, fig. 2.", "They left."],
        ["It costs 3.50 dollars, e.g. at www.example.com or vs. Ltd. prices.", "It rose by .5 points."],
        ["The U.S. Army came.", "So did others."],
        ['He said "Stop."', "“Go!” she said.", "(They went.)", "Then nothing."],
        ["Wait... and see.", "What?!", "No…", "Maybe."],
        ["It was me and I.", "Then we left."],
        ["これは文です。", "次の文です！", "終わり"],
        ["Élan ends.", "Über begins.", "42 is a number."],
        ["no end here"],
        [],
    ],
)
def test_sentences(expected):
    # Without spaces between them where the script has none.
    space = "" if expected and expected[0].startswith("こ") else "  "
    assert sentences(space.join(expected)) == expected


def test_line_ends():
    text = "A heading\nThe first line\nof a paragraph goes on.\n\nand lower case behind a blank line\n \nlast"
    assert sentences(text) == [
        "A heading",
        "The first line\nof a paragraph goes on.",
        "and lower case behind a blank line",
        "last",
    ]


def test_long_runs_take_linear_time():
    for run in (".", " ", "\n", ". ", '."', "a"):
        assert len("".join(sentences("A" + run * 200_000))) <= 400_001


def test_sentences_keep_every_word():
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices(["a", "B", "Mr", ".", "!", " ", "\n", '"', "。", "5"], k=60))
        assert "".join("".join(sentences(text)).split()) == "".join(text.split())


# Packing.


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([4], [4]),
        ([4, 6], [10]),
        ([4, 7], [4, 7]),
        ([3, 3, 3, 3], [9, 3]),
        ([10, 10], [10, 10]),
        ([25], [10, 10, 5]),
        ([4, 25, 5, 1], [4, 10, 10, 10, 1]),
        ([20, 3], [10, 10, 3]),
        ([0, 5, 0], [5]),
    ],
)
def test_block_lengths(lengths, expected):
    assert block_lengths(lengths, 10) == expected


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", ".", "[", "]", "sep"]
IDS = {word: number for number, word in enumerate(WORDS)}


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def blocks_of(texts: list[str], tokenizer: Tokenizer, block_length: int, pack_documents: bool) -> list[str]:
    documents = [Document(text, 0) for text in texts]
    table, counts = pack(documents, tokenizer, block_length, pack_documents)
    assert table.schema.field("token_ids").type == pa.list_(pa.int32())
    ids = table.column("token_ids").to_pylist()
    assert counts["documents"] == len(texts)
    assert counts["blocks"] == len(ids)
    assert counts["tokens"] == sum(map(len, ids))
    assert counts["longest"] == max(map(len, ids), default=0)
    return [" ".join(WORDS[token] for token in block) for block in ids]


def test_pack_keeps_sentences_whole_and_documents_apart(tokenizer):
    texts = ["A b. C d. E f. G.", "", "A.", " \n "]
    assert blocks_of(texts, tokenizer, 8, False) == ["a b . c d .", "e f . g .", "a ."]
    assert pack([Document(text, 0) for text in texts], tokenizer, 8, False)[1]["empty"] == 2


def test_pack_joins_short_documents(tokenizer):
    texts = ["A b.", "C d.", "E.", "A b. C d. E f.", "G."]
    assert blocks_of(texts, tokenizer, 8, True) == ["a b . c d .", "e .", "a b . c d .", "e f . g ."]


def test_pack_tells_the_documents_of_blocks_that_hold_one_each(tokenizer):
    documents = [Document(text, 0) for text in ("A b. C d. E f. G.", "", "A.")]
    table, _ = pack(documents, tokenizer, 8, False, first_document=5)
    assert table.schema.field("document").type == pa.int64()
    assert table.column("document").to_pylist() == [5, 5, 7]
    assert pack(documents, tokenizer, 8, True)[0].column_names == ["token_ids"]


def test_pack_cuts_long_sentences(tokenizer):
    assert blocks_of(["a b c d e f g h a b c. D."], tokenizer, 7, False) == ["a b c d e", "f g h a b", "c . d ."]


def test_short_tail_is_dropped_unless_it_is_all_there_is(tokenizer):
    limit = 48
    full = "a " * limit
    for tail, kept in (("b c", False), ("b c d", True)):
        table, counts = pack([Document(full + tail, 0)], tokenizer, limit + 2, False)
        assert counts["blocks"] == 1 + kept
        assert counts["dropped_tokens"] == (0 if kept else 2)
        assert table.column("token_ids")[0].as_py() == [IDS["a"]] * limit
    assert blocks_of(["b"], tokenizer, limit + 2, False) == ["b"]


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"], indirect=True)
@pytest.mark.parametrize("pack_documents", [False, True])
def test_blocks_hold_the_tokens_of_the_whole_text(model_type_tokenizer, pack_documents):
    tokenizer = Tokenizer.from_file(str(model_type_tokenizer / "tokenizer.json"))
    texts = ["Dogs bark. Cats sleep!  That reads well.", "A text. It carries dogs."]
    table, _ = pack([Document(text, 0) for text in texts], tokenizer, 1000, pack_documents)
    # Documents that share a block have blanks between them, and before the first.
    whole = ["".join(f" {text}" for text in texts)] if pack_documents else texts
    expected = tokenizer.encode_batch([text.replace("  ", " ") for text in whole], add_special_tokens=False)
    assert table.column("token_ids").to_pylist() == [encoding.ids for encoding in expected]


def test_special_tokens_in_a_text_are_text(tokenizer):
    tokenizer.encode_special_tokens = True
    assert blocks_of(["a [SEP] b"], tokenizer, 10, False) == ["a [ sep ] b"]


def test_markup_is_stripped(tokenizer):
    table, _ = pack([Document("'''A''' [[x|b]] {{c}}", 0, is_markup=True)], tokenizer, 10, False)
    assert table.column("token_ids").to_pylist() == [[IDS["a"], IDS["b"]]]


# On disk.


def save(directory: Path, shards: list[list[list[int]]], settings: dict | None = None) -> Path:
    directory.mkdir()
    names = []
    for number, rows in enumerate(shards):
        names.append(f"data-{number:05d}.arrow")
        write_blocks(pa.table({"token_ids": pa.array(rows, pa.list_(pa.int32()))}), directory / names[-1])
    write_description(directory, names, "0" * 16, settings or {})
    return directory


SHARDS = [[[5, 6, 7], [8]], [[9, 10, 11, 12, 13], [], [14, 15]]]
ROWS = SHARDS[0] + SHARDS[1]


def check_blocks(blocks: TokenBlocks) -> None:
    assert len(blocks) == 5
    assert blocks.lengths.dtype == np.int32
    assert blocks.lengths.tolist() == [3, 1, 5, 0, 2]
    assert [blocks[i].tolist() for i in range(5)] == ROWS
    assert blocks[4].tolist() == [14, 15]


def test_written_blocks_are_read_by_us_and_by_the_library(tmp_path):
    directory = save(tmp_path / "blocks", SHARDS, {"block_length": 7})
    blocks = TokenBlocks(directory)
    check_blocks(blocks)
    assert blocks.settings == {"block_length": 7}
    loaded = datasets.load_from_disk(str(directory))
    assert loaded.column_names == ["token_ids"]
    assert loaded["token_ids"][:] == ROWS
    # Releases before 4 know this name of a list, and no other.
    features = json.loads((directory / "dataset_info.json").read_text())["features"]
    assert features["token_ids"]["_type"] == "Sequence"


def test_saved_by_the_library(tmp_path):
    # As the original code leaves it: 64-bit ids, other columns beside them, several files.
    made = datasets.Dataset.from_dict({"token_ids": ROWS, "other": ["x"] * 5})
    made.save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "splits"))
    large = datasets.Features({"token_ids": datasets.LargeList(datasets.Value("int32"))})
    made.select_columns(["token_ids"]).cast(large).save_to_disk(str(tmp_path / "large"))
    for name in ("one", "splits", "large"):
        blocks = TokenBlocks(tmp_path / name)
        check_blocks(blocks)
        assert blocks.settings == {}


def test_blocks_are_views_on_the_file(tmp_path):
    blocks = TokenBlocks(save(tmp_path / "blocks", SHARDS))
    assert not blocks[0].flags.owndata
    assert not blocks[0].flags.writeable
    assert np.shares_memory(blocks[0], blocks[0])
    with pytest.raises(IndexError, match="row 5 of 5"):
        blocks[5]
    with pytest.raises(IndexError):
        blocks[-1]


def test_drawing_gives_the_blocks_themselves(tmp_path):
    blocks = TokenBlocks(save(tmp_path / "blocks", SHARDS))
    drawn = blocks.draw(np.array([2, 3, 2]), epochs=np.array([0, 0, 1]))
    for block, index in zip(drawn, (2, 3, 2), strict=True):
        np.testing.assert_array_equal(block, blocks[index])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"input_ids": [[1]], "text": ["x"]}, "no column 'token_ids', but 'input_ids', 'text'"),
        ({"token_ids": ["x"]}, "holds string, not lists of integers"),
        ({"token_ids": [[1.5]]}, "not lists of integers"),
        ({"token_ids": [[1], None]}, "has nulls"),
        ({"token_ids": [[1, None]]}, "has nulls"),
    ],
)
def test_unfit_datasets(tmp_path, columns, reason):
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "blocks"))
    with pytest.raises(InputError) as caught:
        TokenBlocks(tmp_path / "blocks")
    assert str(caught.value).startswith(str(tmp_path / "blocks"))
    assert reason in str(caught.value)


def test_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"do not exist; make them with: python -m train\.prepare --config"):
        TokenBlocks(tmp_path / "nowhere")
    (tmp_path / "blocks.partial").mkdir()
    with pytest.raises(InputError, match="are not finished"):
        TokenBlocks(tmp_path / "blocks")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no saved Hugging Face dataset"):
        TokenBlocks(tmp_path / "empty")
    with pytest.raises(InputError, match="no rows"):
        TokenBlocks(save(tmp_path / "no_blocks", [[]]))
    (save(tmp_path / "damaged", SHARDS) / "prepare.json").write_text("{")
    with pytest.raises(InputError, match=r"prepare\.json: not valid JSON"):
        TokenBlocks(tmp_path / "damaged")
