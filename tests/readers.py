"""Every reader of users' files, and good files for it, which tests then break."""

import functools
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.prepared import load_prepared
from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.data.teacher_scores import read_teacher_scores
from retromae_jax.data.text import open_sources
from retromae_jax.retrieval.embeddings import Embeddings
from retromae_jax.retrieval.runs import iterate_run, read_run
from train.convert import convert


class Reader(NamedTuple):
    """A reader, and good files for it, by name."""

    read: Callable
    files: dict[str, bytes]


def put(directory: Path, files: dict[str, bytes]) -> None:
    """Writes files."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def parquet(table: pa.Table) -> bytes:
    """A table as a parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@functools.cache
def saved_dataset(prefix: str = "", **columns: tuple) -> dict[str, bytes]:
    """The files of a dataset that `save_to_disk` writes."""
    with tempfile.TemporaryDirectory() as directory:
        Dataset.from_dict(dict(columns)).save_to_disk(directory)
        return {prefix + path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


BEIR = {
    "corpus.jsonl": b'{"_id": "d1", "title": "", "text": "Cats purr."}\n{"_id": "d2", "text": "Dogs bark."}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "who purrs"}\n',
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
}
MSMARCO = {
    "collection.tsv": b"0\tCats purr.\n1\tDogs bark.\n",
    "queries.dev.tsv": b"10\twho purrs\n",
    "qrels.dev.tsv": b"10\t0\t0\t1\n",
}
TITLED = {
    "para.txt": b"0\tThey purr.\n1\tThey bark.\n",
    "para.title.txt": b"1\tDogs\n",
    "queries.dev.tsv": MSMARCO["queries.dev.tsv"],
    "qrels.dev.tsv": MSMARCO["qrels.dev.tsv"],
}
PREPARED = {
    **saved_dataset("corpus/", input_ids=((5, 6), (7,))),
    **saved_dataset("train_query/", input_ids=((11,),)),
    "corpus/mapping_id.txt": b"d1\t0\nd2\t1\n",
    "train_query/mapping_id.txt": b"q1\t0\n",
    "train_qrels.txt": b"q1\td2,d1\n",
}
EXAMPLES = b"".join(
    json.dumps(example).encode() + b"\n"
    for example in (
        {"anchor": "cats", "positive": ["Cats purr.", "Cats sleep."], "negative_1": "Dogs bark."},
        {
            "query_id": 8,
            "query": "dogs",
            "positive_passages": [{"docid": "d1", "title": None, "text": "Dogs bark."}],
            "negative_passages": [{"docid": 2, "title": "Cats", "text": "They purr."}],
        },
    )
)
WIKIPEDIA = (
    b"<mediawiki><page><title>Cat</title><ns>0</ns><revision><text>'''Cats''' [[purr]] {{x|y}} &lt;ref&gt;a&lt;/ref&gt;"
    b"</text></revision></page><page><ns>0</ns><redirect/></page></mediawiki>\n"
)
MODEL = {
    "modules.json": json.dumps(
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
    ).encode(),
    "config.json": b'{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "hidden_dropout_prob": 0.1}',
    "sentence_bert_config.json": b'{"max_seq_length": 64}',
    "1_Pooling/config.json": b'{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}',
}

RUN = {
    "run.json": json.dumps(
        {
            "command": "finetune",
            "model": {"hidden_size": 32, "num_attention_heads": 2},
            "encoder": {"pooling": "cls", "normalize": False, "max_length": 64},
            "config": {},
            "data": {},
        }
    ).encode()
}


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def read_texts(directory: Path) -> list[str]:
    """All that can be read of a directory of texts, or of a saved dataset."""
    is_dataset = (directory / "state.json").is_file()
    sources = open_sources([str(directory if is_dataset else only_file(directory))], "text")
    return [document.plain_text() for source in sources for document in source.documents()]


def read_all_of(directory: Path, split: str):
    """A collection, with every text of its passages."""
    collection = load_collection(directory, split)
    assert len(list(collection.passages.texts())) == len(collection.passages)
    return collection


def read_negatives_of(directory: Path):
    collection = load_collection(directory, "dev")
    return read_negatives([directory / "negatives.tsv"], list(collection.queries), collection.passages, 10)


def read_scores_of(directory: Path):
    collection = load_collection(directory, "dev")
    return read_teacher_scores([directory / "scores.txt"], list(collection.queries), collection.passages)


def read_prepared_of(directory: Path):
    collection = load_prepared(directory, "train")
    return collection, list(collection.passages), collection.passages.id_range()


def read_blocks(directory: Path) -> list[list[int]]:
    blocks = TokenBlocks(directory)
    blocks.id_range()
    return [blocks[index].tolist() for index in range(len(blocks))]


def read_examples_of(directory: Path):
    convert([only_file(directory)], directory / "converted")
    return read_all_of(directory / "converted", "train")


def read_run_both_ways(directory: Path):
    run = read_run(only_file(directory))
    assert sum(1 for _ in iterate_run(only_file(directory))) == len(run)
    return run


def read_embeddings(directory: Path):
    embeddings = Embeddings(directory)
    return embeddings[:], embeddings.ids.to_pylist()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


EMBEDDINGS = {
    "embeddings.json": b'{"count": 3, "width": 2, "texts_per_shard": 2, "dtype": "float16"}',
    "ids.txt": b"d1\nd2\nd3\n",
    "vectors-00000-of-00002.npy": npy(np.ones((2, 2), np.float16)),
    "vectors-00001-of-00002.npy": npy(np.zeros((1, 2), np.float16)),
}

READERS = {
    "embeddings": Reader(read_embeddings, EMBEDDINGS),
    "jsonl": Reader(read_texts, {"a.jsonl": b'{"text": "one"}\n{"text": null, "id": 7}\n{"text": "two"}\n'}),
    "tsv": Reader(read_texts, {"a.tsv": b"1\tone\n2\ttwo\n"}),
    "txt": Reader(read_texts, {"a.txt": b"one\nline\n\ntwo\n"}),
    "xml": Reader(read_texts, {"a.xml": WIKIPEDIA}),
    "gzip": Reader(read_texts, {"a.jsonl.gz": gzip.compress(b'{"text": "one"}\n' * 9, mtime=0)}),
    "parquet": Reader(read_texts, {"a.parquet": parquet(pa.table({"text": ["one", None, "two"] * 9}))}),
    "dataset": Reader(read_texts, saved_dataset(text=("one", "two", "three"))),
    "beir": Reader(lambda directory: read_all_of(directory, "test"), BEIR),
    "msmarco": Reader(lambda directory: read_all_of(directory, "dev"), MSMARCO),
    "titled": Reader(lambda directory: read_all_of(directory, "dev"), TITLED),
    "prepared": Reader(read_prepared_of, PREPARED),
    "negatives": Reader(read_negatives_of, MSMARCO | {"negatives.tsv": b"10\t1,0\n11\t\n"}),
    "scores": Reader(read_scores_of, MSMARCO | {"scores.txt": b"10\t0\t1.5\n10\t1\t[-2e1]\n"}),
    "examples": Reader(read_examples_of, {"a.jsonl": EXAMPLES}),
    "run": Reader(read_run_both_ways, {"a.trec": b"q1 Q0 d1 1 0.5 t\nq1 Q0 d2 2 -1e3 t\nq2 Q0 d1 1 7 t\n"}),
    "blocks": Reader(
        read_blocks,
        {**saved_dataset(token_ids=((1, 2, 3), (4,))), "prepare.json": b'{"block_length": 8, "tokenizer": "x"}'},
    ),
    "run directory": Reader(lambda directory: open_model(str(directory)), RUN),
    "model": Reader(lambda directory: open_model(str(directory), weights=False), MODEL),
}
