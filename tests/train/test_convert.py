import gzip
import json

import pytest

from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.errors import InputError
from train.convert import convert, main


def written(path, *records):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def contents(directory):
    """Queries with their relevant and their negative passages, by their texts."""
    collection = load_collection(directory, "train")
    negatives = read_negatives([directory / "negatives.tsv"], list(collection.queries), collection.passages, 9)
    texts = list(collection.passages.texts())
    return {
        query: ({texts[i] for i in relevant}, [texts[i] for i in negatives.get(number, ())])
        for number, (query, relevant) in enumerate(
            zip(collection.queries.values(), collection.relevant_passages(), strict=True)
        )
    }


def test_sentence_transformers_examples(tmp_path):
    first = written(
        tmp_path / "first.jsonl",
        {"query": "cats", "positive": "Cats purr.", "negative": "Dogs bark.", "negative_1": "Naïve."},
        {"anchor": "dogs", "positive": ["Dogs bark.", "Woof."], "negative": ["Cats purr."]},
    )
    second = written(tmp_path / "second.jsonl.gz", {"query": "cats", "positive": "Cats sleep.", "label": 1})
    assert convert([first, second], tmp_path / "out") == {"queries": 2, "passages": 5}
    assert contents(tmp_path / "out") == {
        "cats": ({"Cats purr.", "Cats sleep."}, ["Dogs bark.", "Naïve."]),
        "dogs": ({"Dogs bark.", "Woof."}, ["Cats purr."]),
    }


def test_tevatron_examples_keep_ids_and_titles(tmp_path, capsys):
    def passage(number, text, title="T"):
        return {"docid": number, "title": title, "text": text}

    examples = written(
        tmp_path / "train.jsonl",
        {
            "query_id": "q7",
            "query": "cats",
            "positive_passages": [passage("d1", "Cats purr.")],
            "negative_passages": [passage(2, "Dogs bark."), passage(3, "Apples fall.", None)],
        },
        {"query_id": 8, "query": "cats", "positive_passages": [passage(2, "Dogs bark.")], "negative_passages": []},
    )
    main(["--from", str(examples), "--to", str(tmp_path / "out")])
    assert "2 queries, 3 passages" in capsys.readouterr().err
    collection = load_collection(tmp_path / "out", "train")
    assert collection.queries == {"q7": "cats", "8": "cats"}
    assert collection.qrels == {"q7": {"d1": 1}, "8": {"2": 1}}
    assert collection.passages.ids.to_pylist() == ["d1", "2", "3"]
    assert list(collection.passages.texts()) == ["T Cats purr.", "T Dogs bark.", "Apples fall."]
    assert (tmp_path / "out" / "negatives.tsv").read_text() == "q7\t2,3\n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "a JSON list where an object is expected"),
        ({"text": "x"}, r"no text under 'query' or 'anchor', but the keys \['text'\]"),
        ({"query": "x", "negative": "y"}, r"no positive passage, but the keys \['query', 'negative'\]"),
        ({"query": "x", "positive": 7}, "'positive' is neither a text nor a list of texts"),
        ({"query": "x", "query_id": "a b", "positive": "y"}, "the id 'a b' is empty, has white space"),
        ({"query": "x", "positive_passages": [{"text": "y"}]}, "a passage without 'docid' or 'text'"),
    ],
)
def test_broken_lines(tmp_path, record, message):
    file = written(tmp_path / "train.jsonl", {"query": "x", "positive": "y"}, record)
    with pytest.raises(InputError, match=rf"train\.jsonl:2: {message}"):
        convert([file], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("query", "passage", "clashing"),
    [
        ({"query_id": 1, "query": "dogs"}, {"docid": 2, "text": "Dogs bark."}, "1"),
        ({"query_id": 2, "query": "cats"}, {"docid": 1, "text": "Cats purr.", "title": "Cats"}, "1"),
        ({"query_id": 2, "query": "cats"}, {"docid": "n0", "text": "Dogs bark."}, "n0"),
    ],
)
def test_an_id_is_of_one_text(tmp_path, query, passage, clashing):
    """Files that number their texts each for itself would become one another's."""
    known = {"query_id": 1, "query": "cats", "positive_passages": [{"docid": "1", "text": "Cats purr."}]}
    first = written(tmp_path / "first.jsonl", {"query": "cats", "positive": "Cats sleep."}, known)
    second = written(tmp_path / "second.jsonl", known, query | {"positive_passages": [passage]})
    with pytest.raises(InputError, match=rf"second\.jsonl:2: the id '{clashing}' is that of another .*one by one"):
        convert([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_made_up_ids_pass_over_those_of_texts(tmp_path):
    passage = {"docid": "n1", "text": "Cats purr."}
    known = {"query_id": "q", "query": "cats", "positive_passages": [passage]}
    convert([written(tmp_path / "a.jsonl", known, {"query": "dogs", "positive": "Dogs bark."})], tmp_path / "out")
    corpus = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    assert [text["_id"] for text in corpus] == ["n1", "n2"]


def test_what_is_there_is_not_overwritten(tmp_path):
    file = written(tmp_path / "train.jsonl", {"query": "x", "positive": "y"})
    with pytest.raises(InputError, match="choose another --to"):
        convert([file], tmp_path)
    convert([file], tmp_path / "out")
    assert not (tmp_path / "out" / "negatives.tsv").exists()
    assert not (tmp_path / "out.partial").exists()
