import numpy as np
import pytest
from datasets import Dataset

from retromae_jax.data.prepared import is_prepared, load_prepared
from retromae_jax.data.retrieval import read_negatives
from retromae_jax.data.tokenization import add_special_tokens, encode_batch, load_tokenizer
from retromae_jax.errors import InputError

PASSAGES = {"d7": [5, 6], "d2": [7], "d5": [8, 9, 10]}
QUERIES = {"q1": [11], "q2": [12, 13]}


def save(directory, texts):
    rows = [{"id": key, "input_ids": ids} for key, ids in texts.items()]
    Dataset.from_list(rows).save_to_disk(directory)
    (directory / "mapping_id.txt").write_text("".join(f"{key}\t{row}\n" for row, key in enumerate(texts)))


@pytest.fixture
def prepared(tmp_path):
    """As preprocess.py of the original code writes it."""
    save(tmp_path / "corpus", PASSAGES)
    save(tmp_path / "train_query", QUERIES)
    (tmp_path / "train_qrels.txt").write_text("q2\td5,d2\nq1\td7\nq2\td7\n")
    return tmp_path


def test_token_ids_take_the_place_of_texts(prepared):
    assert is_prepared(prepared) and not is_prepared(prepared / "corpus")
    collection = load_prepared(prepared, "train")
    assert {key: ids.tolist() for key, ids in collection.queries.items()} == {"q2": [12, 13], "q1": [11]}
    assert [relevant.tolist() for relevant in collection.relevant_passages()] == [[2, 1, 0], [0]]
    passages = collection.passages.texts(titles=True)
    assert [ids.tolist() for ids in passages] == list(PASSAGES.values())
    assert passages.id_range() == (5, 10)
    (prepared / "negatives.txt").write_text("q1\td2,d5\n")
    negatives = read_negatives([prepared / "negatives.txt"], list(collection.queries), collection.passages, 9)
    assert negatives[1].tolist() == [1, 2]


def test_token_ids_become_what_their_text_becomes(minilm_directory):
    tokenizer = load_tokenizer(str(minilm_directory))
    texts = ["a compact encoder", "retrieval-oriented language models and their pretraining", "cats"]
    token_ids = [np.array(ids, np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for length in (5, 32):
        expected, found = encode_batch(tokenizer, texts, length), add_special_tokens(tokenizer, token_ids, length)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_rows_are_found_by_the_mapping(prepared):
    (prepared / "corpus" / "mapping_id.txt").write_text("d2\t1\nd5\t2\nd7\t0\n")
    passages = load_prepared(prepared, "train").passages
    assert passages.ids.to_pylist() == ["d7", "d2", "d5"]
    np.testing.assert_array_equal(passages.indices(["d5", "d9"]), [2, -1])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus/mapping_id.txt", "d2\t1\nd5\t2\n", "does not give each of the 3 rows of .*corpus one id"),
        ("corpus/mapping_id.txt", "d2 1\n", "not lines `id TAB row`"),
        ("train_qrels.txt", "q2 d5\n", r"train_qrels\.txt:1: not `query-id TAB passage-id"),
        ("train_qrels.txt", "q2\td5\nq9\td5\n", r"train_qrels\.txt:2: .*train_query has no query 'q9'"),
        ("train_qrels.txt", "q2\td5,d9\n", r"train_qrels\.txt:1: .*corpus has no passage 'd9'"),
    ],
)
def test_broken_files(prepared, file, content, message):
    (prepared / file).write_text(content)
    with pytest.raises(InputError, match=message):
        load_prepared(prepared, "train")


def test_missing_files(prepared):
    with pytest.raises(InputError, match=r"no dev_query and no dev_qrels\.txt for the split 'dev'"):
        load_prepared(prepared, "dev")
    (prepared / "train_query" / "mapping_id.txt").unlink()
    with pytest.raises(InputError, match=r"train_query/mapping_id\.txt: no such file"):
        load_prepared(prepared, "train")
