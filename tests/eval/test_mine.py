"""Hard negatives from search to file, and from the file to training groups."""

import pytest

from eval import bm25
from eval.mine import main
from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.retrieval import slices
from retromae_jax.retrieval.embeddings import encode_to_disk
from retromae_jax.retrieval.runs import read_run


@pytest.fixture
def collection(tmp_path):
    directory = tmp_path / "meaning"
    directory.mkdir()
    (directory / "collection.tsv").write_text(
        "a\tThe cat slept on a sofa.\nb\tA cat sleeps all day.\nc\tStocks fell sharply.\nd\tThe dog sleeps.\n"
    )
    (directory / "queries.train.tsv").write_text("q1\tsleeping cat\nq2\tstock market crash\nq3\tthe dog\n")
    (directory / "qrels.train.tsv").write_text("q1\t0\tb\t1\nq2\t0\tc\t1\nq3\t0\td\t0\n")
    return directory


def read(path):
    return {query: passages.split(",") for query, passages in map(str.split, path.read_text().splitlines())}


def test_an_encoders_negatives_in_batches_and_blocks(collection, minilm_directory, tmp_path, monkeypatch, capsys):
    output = tmp_path / "negatives.tsv"
    monkeypatch.setattr("eval.mine.QUERIES_AT_ONCE", 1)
    monkeypatch.setattr(slices, "SLICE_BYTES", 4 * 384)  # a passage
    command = f"--model {minilm_directory} --collection {collection} --output {output} --batch-size 8"
    main(f"{command} --from-rank 1".split())
    negatives = read(output)
    # q3 has no relevant passage to learn from; for the others, everything but the relevant one, the hardest first.
    assert negatives.keys() == {"q1", "q2"}
    assert negatives["q1"] == ["a", "d", "c"] and sorted(negatives["q2"]) == ["a", "b", "d"]
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["queries with a relevant passage"] == "2" and printed["relevant ones, left out"] == "2"
    assert [path.name for path in tmp_path.glob(".*")] == []

    # What training reads.
    opened = load_collection(collection, "train")
    found = read_negatives([output], ["q1", "q2"], opened.passages, 200)
    assert opened.passages.ids.take(found[0]).to_pylist() == ["a", "d", "c"]


def test_a_killed_command_goes_on_with_its_embeddings(collection, minilm_directory, tmp_path, monkeypatch):
    output, encoded = tmp_path / "negatives.tsv", []
    command = f"--model {minilm_directory} --collection {collection} --output {output} --from-rank 1".split()

    def killed(*arguments):
        raise KeyboardInterrupt

    def recorded(*arguments, **options):
        encoded.append(encode_to_disk(*arguments, **options))

    monkeypatch.setattr("eval.retriever.encode_to_disk", recorded)
    with monkeypatch.context() as patch:
        patch.setattr("eval.retriever.Retriever.search", killed)
        with pytest.raises(SystemExit):
            main(command)
    assert not output.exists() and len(list(tmp_path.glob(".*"))) == 1
    main(command)
    assert encoded == [4, 0]
    assert read(output).keys() == {"q1", "q2"} and not list(tmp_path.glob(".*"))


def test_runs_and_bm25_agree(collection, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.mine.QUERIES_AT_ONCE", 1)
    bm25.main(f"--collection {collection} --split train --output {tmp_path / 'bm25'}".split())
    files = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    window = f"--collection {collection} --from-rank 1 --to-rank 3"
    main(f"--bm25 --output {files[0]} {window}".split())
    main(f"--run {tmp_path / 'bm25' / 'run.trec'} --output {files[1]} {window}".split())
    assert read(files[0]) == read(files[1]) == {"q1": ["a"]}


def test_a_run_is_read_query_by_query(collection, tmp_path, monkeypatch):
    run, output = tmp_path / "run.trec", tmp_path / "negatives.tsv"
    lines = [
        f"{query} Q0 {passage} 1 {score} x" for query in ("q1", "q9", "q2") for score, passage in enumerate("dcba")
    ]
    run.write_text("\n".join(lines) + "\n")
    assert list(read_run(run)) == ["q1", "q9", "q2"]
    monkeypatch.setattr("eval.mine.QUERIES_AT_ONCE", 1)
    main(f"--run {run} --output {output} --collection {collection}".split())
    assert read(output) == {"q1": ["c", "d"], "q2": ["b", "d"]}
    # q2's relevant passage c is at rank 3 of scores 3, 2, 1, 0; what scores above 1 - 0.5 is left out.
    main(f"--run {run} --output {output} --collection {collection} --margin 0.5 --negatives 1".split())
    negatives = read(output)
    assert negatives["q2"] == ["d"] and negatives["q1"] in (["c"], ["d"])


@pytest.mark.parametrize(
    "lines, message",
    [
        (["q1 Q0 a 1 1 x", "q2 Q0 a 1 1 x", "q1 Q0 b 2 0 x"], "run.trec:3: lines of query 'q1' stand apart"),
        (["q1 Q0 z 1 1 x"], "has no passage 'z'; take a run of this collection"),
        (["q8 Q0 a 1 1 x"], "none of its queries has a relevant passage in the split 'train'"),
        (["q1 Q0 b 1 1 x"], "no query has negatives; take a wider window"),
    ],
)
def test_runs_that_cannot_be_used_are_refused(lines, message, collection, tmp_path, capsys):
    (tmp_path / "run.trec").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(SystemExit):
        main(f"--run {tmp_path / 'run.trec'} --output {tmp_path / 'o.tsv'} --collection {collection}".split())
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.tsv").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "arguments",
    [
        "--from-rank 3 --to-rank 2",
        "--margin -1",
        "--negatives 0",
        "--bm25",
        "--pooling cls",
        "--search flat",
        "--batch-size 3",
    ],
)
def test_wrong_arguments(arguments, collection, capsys):
    with pytest.raises(SystemExit) as caught:
        main(f"--run r --collection {collection} --output o {arguments}".split())
    assert caught.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err
