"""Every kind of source, well formed and broken."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retromae_jax.data import text
from retromae_jax.data.text import open_sources, wiki_to_text
from retromae_jax.errors import InputError


def read(*names: Path | str, text_field: str = "text") -> list[str]:
    sources = open_sources([str(name) for name in names], text_field)
    return [document.plain_text() for source in sources for document in source.documents()]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(*texts: object) -> str:
    return "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts))


def error_of(*names: Path | str, text_field: str = "text") -> str:
    with pytest.raises(InputError) as caught:
        read(*names, text_field=text_field)
    return str(caught.value)


# JSON lines.


def test_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", json_lines("one\ntwo", "", "Ünïcode 漢字", None))
    assert read(path) == ["one\ntwo", "", "Ünïcode 漢字", ""]


def test_other_field_and_json_suffix(tmp_path):
    path = write(tmp_path / "a.json", '{"body": "x", "text": 3}\n')
    assert read(path, text_field="body") == ["x"]


def test_byte_order_mark_carriage_returns_and_blank_lines_are_tolerated(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert read(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason", "remedy"),
    [
        (b'{"text": "cut', "no valid JSON", "mend or remove the line"),
        (b"not json", "no valid JSON", "mend or remove the line"),
        (b'["text"]', "a JSON list", "a line of its own"),
        (b'{"id": 1, "body": ""}', "no key 'text', but the keys ['id', 'body']", "--config.text_field"),
        (b'{"text": 7}', "'text' holds a int", "--config.text_field"),
        (b'{"text": "\\ud83d"}', "surrogate", "mend or remove the line"),
        (b'{"text": "\xff"}', "byte 11 of the line is not UTF-8", "iconv"),
        (b"[" * 100_000, "no valid JSON", "mend or remove the line"),
    ],
)
def test_broken_json_line(tmp_path, line, reason, remedy):
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    message = error_of(path)
    assert message.startswith(f"{path}:2: ")
    assert reason in message
    assert remedy in message


# Compression.


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_whole_and_cut_short(tmp_path, suffix, compress):
    texts = [f"document {number}" for number in range(5000)]
    packed = compress(json_lines(*texts).encode())
    assert read(write(tmp_path / f"a.jsonl{suffix}", packed)) == texts
    cut = write(tmp_path / f"cut.jsonl{suffix}", packed[: len(packed) // 2])
    message = error_of(cut)
    assert message.startswith(f"{cut}:")
    assert "cut short or damaged: fetch it again" in message


def test_named_compressed_but_is_not(tmp_path):
    path = write(tmp_path / "a.txt.gz", "plain")
    assert error_of(path).startswith(f"{path}:1: ")


# Plain text.


def test_plain_text_documents_end_at_blank_lines(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeff\n\nOne,\r\ntwo.\r\n \t\r\n\r\n  Three.\nFour.")
    assert read(path) == ["One,\ntwo.", "  Three.\nFour."]


def test_plain_text_without_blank_lines_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_PLAIN_DOCUMENT", 10)
    assert read(write(tmp_path / "a.txt", "aaaa\nbbbb\ncccc\ndddd\n")) == ["aaaa\nbbbb\ncccc", "dddd"]


def test_broken_utf8_in_plain_text_names_the_line(tmp_path):
    path = write(tmp_path / "a.txt", "gut\n\nsch\u00f6n\n".encode("latin-1"))
    assert error_of(path).startswith(f"{path}:3: byte 4 of the line is not UTF-8")


# Tab-separated values.


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ('7\tOne, "two".\r\n\n8\t\n9\tThree', ['One, "two".', "", "Three"]),  # MS MARCO's passages
        ("7\tTitle\tText.\n8\t\tNo title\n", ["Title\nText.", "No title"]),  # RocketQA's passages
        ("D7\thttp://x\tTitle\tBody.\nD8\thttp://y\tTitle\t \n", ["Title\nBody.", "Title"]),  # MS MARCO's documents
    ],
)
def test_tab_separated(tmp_path, lines, texts):
    assert read(write(tmp_path / "a.tsv", lines)) == texts
    assert read(write(tmp_path / "a.tsv.gz", gzip.compress(lines.encode()))) == texts


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("7\tgood\n8\tbad\ttab\n", "2: 3 columns between tabs where the 2 of the first line are expected"),
        ("7\tTitle\tgood\n8\n", "2: 1 columns between tabs where the 3 of the first line are expected"),
        ("no id\n", "1: 1 columns between tabs where id, (address,) (title,) text are expected"),
        ("1\t2\t3\t4\t5\n", "1: 5 columns between tabs where id, (address,) (title,) text are expected"),
    ],
)
def test_broken_tab_separated_line(tmp_path, lines, reason):
    path = write(tmp_path / "a.tsv", lines)
    message = error_of(path)
    assert message.startswith(f"{path}:{reason}")
    assert "mend the line" in message


# Parquet.


def write_parquet(path: Path, column: pa.Array, rows_per_group: int = 3) -> Path:
    pq.write_table(pa.table({"id": range(len(column)), "text": column}), path, row_group_size=rows_per_group)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    texts = [f"text {number % 4}" for number in range(10)]
    column = pa.array([*texts, None]).dictionary_encode() if pa.types.is_dictionary(kind) else None
    path = write_parquet(tmp_path / "a.parquet", column or pa.array([*texts, None], kind))
    assert read(path) == [*texts, ""]


def test_parquet_with_wrong_column_or_damage(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a", "b"]))
    assert f"{path}: no column 'body', but 'id', 'text'" in error_of(path, text_field="body")
    assert f"{path}: column 'id' holds int64, not text" in error_of(path, text_field="id")
    cut = write(tmp_path / "cut.parquet", path.read_bytes()[:-20])
    assert str(cut) in error_of(cut)
    assert "fetch it again" in error_of(cut)


# Wikipedia.

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
<siteinfo><sitename>Wikipedia</sitename></siteinfo>
<page><title>A</title><ns>0</ns><id>1</id><revision><id>9</id><text>'''A''' is a [[letter]].</text></revision></page>
<page><title>B</title><ns>0</ns><redirect title="A"/><revision><text>#REDIRECT [[A]]</text></revision></page>
<page><title>Talk:A</title><ns>1</ns><revision><text>talk</text></revision></page>
<page><title>C</title><ns>0</ns><revision><text /></revision></page>
<page><title>D</title><ns>0</ns><revision><text>old</text></revision><revision><text>new</text></revision></page>
</mediawiki>
"""


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2", "enwiki-pages-articles1.xml-p1p41242.bz2"])
def test_wikipedia_dump(tmp_path, name):
    content = DUMP.encode()
    path = write(tmp_path / name, bz2.compress(content) if name.endswith(".bz2") else content)
    assert read(path) == ["A is a letter.", "", "new"]


def test_broken_dump_names_the_line(tmp_path):
    cut = write(tmp_path / "cut.xml", DUMP[: DUMP.index("<redirect")])
    assert error_of(cut).startswith(f"{cut}:4: no valid XML")
    other = write(tmp_path / "other.xml", "<html></html>")
    assert "no MediaWiki dump: it begins with <html>" in error_of(other)
    packed = bz2.compress(DUMP.encode())
    damaged = write(tmp_path / "damaged.xml.bz2", packed[: len(packed) // 2])
    assert error_of(damaged).startswith(str(damaged))


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("'''Bold''' and ''italic'' [[Paris|capital]] of [[France]]s", "Bold and italic capital of Frances"),
        ("{{Infobox|name={{PAGENAME}}|x=[[y]]}}Text{{cite|a}}.", "Text."),
        ('Water<ref name="a">Book, p. 3</ref> is wet.<ref name="a" />', "Water is wet."),
        ("Before\n{| class=wikitable\n|-\n! head\n|-\n| cell [[link]]\n|}\nAfter", "Before\nAfter"),
        ("[[File:a.jpg|thumb|left|A [[cat]] asleep]]Cats sleep.", "Cats sleep."),
        ("Text\n== History ==\nMore\n=== Early ===\n", "Text\nMore"),
        ("Text\n[[Category:Letters]]\n[[de:Text]]\n", "Text"),
        (
            "See [[:Category:Letters]] and [https://example.org the page] <!-- no -->",
            "See Category:Letters and the page",
        ),
        ("* one\n* two\n# three", "one\ntwo\nthree"),
        ("a &amp; b&nbsp;c &lt;d&gt;&#xD800; __NOTOC__", "a & b c <d>"),
        ("Rome ({{IPA|x}}; {{lang|la|Roma}} the city) and Bonn ({{IPA|y}}) too", "Rome (the city) and Bonn too"),
        ("<math>x^2</math>Sum <sub>2</sub> first<br/>second", "Sum 2 first\nsecond"),
        ("", ""),
        ("{{unclosed [[File:", "{{unclosed [[File:"),
        ("Reader'' (1977)\n{| class=unclosed\n! head\n| cell\n\nAfter", "Reader (1977)\nAfter"),
    ],
)
def test_wiki_markup(markup, expected):
    assert wiki_to_text(markup) == expected


# Folders, saved datasets, the Hub.


def test_folder_is_read_in_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "sub" / "c.jsonl", json_lines("c"))
    write(tmp_path / "a.txt.gz", gzip.compress(b"a"))
    write(tmp_path / "README.md", "no text")
    assert read(tmp_path) == ["a", "b", "c"]


def test_folder_without_text(tmp_path):
    write(tmp_path / "README.md", "no text")
    assert "no file in this folder has a known format (.jsonl" in error_of(tmp_path)


def test_saved_dataset_and_its_splits(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", None, "c"], "n": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows.select([2, 0]), "test": rows}).save_to_disk(str(tmp_path / "splits"))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "no_train"))
    assert read(tmp_path / "one") == ["a", "", "c"]
    assert read(tmp_path / "splits") == ["c", "a"]
    assert "no column 'body', but 'text', 'n'" in error_of(tmp_path / "one", text_field="body")
    assert "column 'n' holds int64, not text" in error_of(tmp_path / "one", text_field="n")
    assert f"name one of {tmp_path / 'no_train' / 'test'}" in error_of(tmp_path / "no_train")
    assert read(tmp_path / "no_train" / "test") == ["a", "", "c"]


def test_damaged_saved_dataset(tmp_path):
    datasets.Dataset.from_dict({"text": ["a" * 1000]}).save_to_disk(str(tmp_path / "one"))
    arrow = next((tmp_path / "one").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert error_of(tmp_path / "one").startswith(f"{tmp_path / 'one'}: no saved Hugging Face dataset")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "/no/where", "a/b/c", "data/", "x.txt.gz"])
def test_missing_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of(name).startswith(f"{name}: this file or folder does not exist")


def test_unknown_format(tmp_path):
    path = write(tmp_path / "a.docx", "x")
    assert error_of(path).startswith(f"{path}: its name does not end in a known format (.jsonl")
    packed = write(tmp_path / "a.parquet.gz", "x")
    assert "all but .parquet" in error_of(packed)


def test_no_sources():
    with pytest.raises(InputError, match=r"--config\.sources="):
        open_sources([], "text")
    with pytest.raises(InputError, match="empty name"):
        open_sources([""], "text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:en", ("owner/name", "en", "train")),
        ("name:en:test[:5%]", ("name", "en", "test[:5%]")),
        ("name::validation", ("name", None, "validation")),
    ],
)
def test_hub_names(monkeypatch, name, expected):
    asked = []

    def load_dataset(repository, config, *, split):
        asked.append((repository, config, split))
        return datasets.Dataset.from_dict({"text": ["from the Hub"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read(name) == ["from the Hub"]
    assert asked == [expected]


def test_hub_out_of_reach_and_scripts(monkeypatch):
    message = error_of("owner/name:en")
    assert message.startswith("owner/name:en: neither a file here nor a dataset that the Hugging Face Hub gives")
    assert "check the name and the connection" in message

    def load_dataset(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "code of their own are not loaded" in error_of("owner/name")


def test_positions_grow_to_the_size_of_the_source(tmp_path):
    paths = [
        write(tmp_path / "a.jsonl", json_lines("one", "two", "three")),
        write(tmp_path / "b.txt", "one\n\ntwo\n\nthree"),
        write_parquet(tmp_path / "c.parquet", pa.array(["one", "two", "three"])),
    ]
    for source in open_sources([str(path) for path in paths], "text"):
        positions = [document.position for document in source.documents()]
        assert positions == sorted(positions)
        assert positions[-1] == source.size
