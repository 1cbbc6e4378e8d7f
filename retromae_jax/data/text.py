"""Streaming readers of raw text: every source becomes a stream of documents.

A source is a file (`.jsonl`, `.json` with one object a line, `.txt`, `.tsv` in the layouts of MS MARCO, Wikipedia's
`.xml`, each also `.gz`, `.bz2` or `.xz`; `.parquet`), a folder of such files, a saved Hugging Face dataset, or a
dataset on the Hub (`NAME`, `NAME:CONFIG`, `NAME:CONFIG:SPLIT`). No reader holds more than one document, or one batch of
rows, in memory.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from retromae_jax.errors import InputError, one_line, shown
from retromae_jax.files import read_json

if TYPE_CHECKING:
    import datasets

# A plain-text file that has no blank line for this many characters is cut at the end of a line.
LONGEST_PLAIN_DOCUMENT = 100_000
ROWS_PER_BATCH = 1000
COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class Document(NamedTuple):
    """A document as it stands in its source.

    Attributes:
        text: its text, maybe empty.
        position: how far into its source it was found, in bytes of the source's `size`.
        is_markup: whether `text` is Wikipedia's markup.
    """

    text: str
    position: int
    is_markup: bool = False

    def plain_text(self) -> str:
        """The text without markup."""
        return wiki_to_text(self.text) if self.is_markup else self.text


Reader = Callable[[Path, str], Iterator[Document]]


class Source(Protocol):
    """One place that text comes from.

    Attributes:
        name: what messages call it.
        size: its size in bytes.
    """

    name: str
    size: int

    def documents(self) -> Iterator[Document]:
        """Reads the documents in their order, empty ones too.

        Raises:
            InputError: at the first broken line; it names the file, the line and the remedy.
        """


def open_sources(names: Sequence[str], text_field: str) -> list[Source]:
    """Finds the sources and checks what can be checked before they are read.

    Args:
        names: files, folders, saved datasets and Hub names.
        text_field: the column or key that holds the text.

    Raises:
        InputError: if there is none, one does not exist, or its format is unknown.
    """
    if not names:
        raise InputError("sources are empty; name files, folders or datasets: --config.sources=\"('text.jsonl',)\"")
    return [source for name in names for source in _open_source(name, text_field)]


def _open_source(name: str, text_field: str) -> list[Source]:
    if not name:
        raise InputError("an empty name among the sources; remove it from `sources`")
    path = Path(name).expanduser()
    if path.is_file():
        return [TextFile(path, text_field)]
    if path.is_dir() and any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        return [DatasetRows(name, load_saved_dataset(path), text_field)]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file) is not None)
        if not files:
            raise InputError(f"{name}: no file in this folder has a known format ({_known_formats()})")
        return [TextFile(file, text_field) for file in files]
    if _looks_like_path(name):
        raise InputError(f"{name}: this file or folder does not exist; mend `sources`")
    return [DatasetRows(name, _load_from_hub(name), text_field)]


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or _reader(Path(name)) is not None
        or Path(name).suffix in COMPRESSIONS
    )


# Files.


class TextFile:
    """A file of documents, its format told by its name."""

    def __init__(self, path: Path, text_field: str):
        reader = _reader(path)
        if reader is None:
            raise InputError(f"{path}: its name does not end in a known format ({_known_formats()}); rename it")
        self.path, self.text_field, self._read = path, text_field, reader
        self.name, self.size = str(path), path.stat().st_size

    def documents(self) -> Iterator[Document]:
        return self._read(self.path, self.text_field)


def _known_formats() -> str:
    return f"{' '.join(READERS)}; all but .parquet also with {' '.join(COMPRESSIONS)}"


def _reader(path: Path) -> Reader | None:
    """The reader of the file's format, told by its name; None if it is unknown."""
    suffix, is_compressed = path.suffix.lower(), False
    if suffix in COMPRESSIONS:
        suffix, is_compressed = Path(path.stem).suffix.lower(), True
    # Wikipedia's dumps come in parts, `...articles1.xml-p1p41242.bz2`.
    suffix = re.sub(r"-p\d+p\d+$", "", suffix)
    return None if is_compressed and suffix == ".parquet" else READERS.get(suffix)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's stream of bytes, unpacked, and the file itself, whose position shows the progress."""
    with path.open("rb") as file:
        if path.suffix.lower() not in COMPRESSIONS:
            yield file, file
            return
        with COMPRESSIONS[path.suffix.lower()](file) as unpacked:
            yield unpacked, file


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yields each line's number, its text without the line end, and the position behind it."""
    number = 0
    try:
        with _opened(path) as (stream, file):
            for number, line in enumerate(stream, 1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; mend the line, or "
                        "convert the file with iconv"
                    ) from None
                if number == 1:
                    text = text.removeprefix("\ufeff")
                yield number, text.rstrip("\r\n"), file.tell()
    except DAMAGED as error:
        raise InputError(
            f"{path}:{number + 1}: the file cannot be read on from here: {error}; it may be cut short or "
            "damaged: fetch it again"
        ) from error


def _read_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line, position in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: no valid JSON: {error}; mend or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(
                f"{path}:{number}: a JSON {type(record).__name__} where one object a line is expected; write "
                "each document as a line of its own"
            )
        if text_field not in record:
            raise InputError(
                f"{path}:{number}: no key {text_field!r}, but the keys {shown(list(record))}; mend the "
                "line or set --config.text_field"
            )
        text = "" if record[text_field] is None else record[text_field]
        if not isinstance(text, str):
            raise InputError(
                f"{path}:{number}: {text_field!r} holds a {type(text).__name__}, not text; mend the line or "
                "set --config.text_field"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}:{number}: {text_field!r} holds half of a surrogate pair at character {error.start + 1}; "
                "mend or remove the line"
            ) from None
        yield Document(text, position)


def _read_plain_text(path: Path, text_field: str) -> Iterator[Document]:
    del text_field  # plain text has none
    document, characters, position = [], 0, 0
    for _, line, position in _lines(path):
        if line.strip():
            document.append(line)
            characters += len(line)
        if document and (not line.strip() or characters >= LONGEST_PLAIN_DOCUMENT):
            yield Document("\n".join(document), position)
            document, characters = [], 0
    if document:
        yield Document("\n".join(document), position)


def _read_tab_separated(path: Path, text_field: str) -> Iterator[Document]:
    """A document a line: `id TAB text`, `id TAB title TAB text` or `id TAB url TAB title TAB text`.

    These are MS MARCO's passages, RocketQA's passages with titles and MS MARCO's documents. The title becomes a line
    before the text; id and address are dropped.
    """
    del text_field  # the text is the last column
    columns = 0
    for number, line, position in _lines(path):
        if not line:
            continue
        fields = line.split("\t")
        columns = columns or len(fields)
        if len(fields) != columns or not 2 <= columns <= 4:
            expected = f"the {columns} of the first line" if 2 <= columns <= 4 else "id, (address,) (title,) text"
            raise InputError(
                f"{path}:{number}: {len(fields)} columns between tabs where {expected} are expected; mend the line (a "
                "text must not hold tabs)"
            )
        yield Document("\n".join(field for field in fields[1:][-2:] if field.strip()), position)


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    size = path.stat().st_size
    rows = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            _check_column(str(path), file.schema_arrow, text_field)
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    rows += 1
                    yield Document(text or "", size * rows // file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the parquet file cannot be read on from row {rows + 1}: {one_line(error)}; it may be cut short "
            "or damaged: fetch it again"
        ) from error


def _check_column(name: str, schema: pa.Schema, text_field: str) -> None:
    if text_field not in schema.names:
        raise InputError(
            f"{name}: no column {text_field!r}, but {', '.join(map(repr, schema.names)) or 'none'}; set "
            "--config.text_field"
        )
    kind = schema.field(text_field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)):
        raise InputError(f"{name}: column {text_field!r} holds {kind}, not text; set --config.text_field")


# Wikipedia.


def _read_wikipedia(path: Path, text_field: str) -> Iterator[Document]:
    """Articles of a MediaWiki dump, as markup; no redirects, no talk, category, template or other pages."""
    del text_field  # a dump has one place for text
    try:
        with _opened(path) as (stream, file):
            root = None
            for event, element in ElementTree.iterparse(stream, events=("start", "end")):
                namespace, _, tag = element.tag.rpartition("}")
                namespace += "}" if namespace else ""
                if root is None:
                    root = element
                    if tag != "mediawiki":
                        raise InputError(f"{path}: no MediaWiki dump: it begins with <{tag}> instead of <mediawiki>")
                if event == "start" or tag != "page":
                    continue
                is_article = element.findtext(f"{namespace}ns", "0") == "0"
                if is_article and element.find(f"{namespace}redirect") is None:
                    revisions = element.findall(f"{namespace}revision/{namespace}text")
                    text = revisions[-1].text if revisions else ""
                    yield Document(text or "", file.tell(), is_markup=True)
                root.clear()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise InputError(
            f"{path}:{line}: no valid XML at column {column + 1}: {error.msg}; the dump may be cut short: fetch "
            "it again"
        ) from None
    except DAMAGED as error:
        raise InputError(
            f"{path}: the file cannot be read on: {error}; it may be cut short or damaged: fetch it again"
        ) from error


_INVISIBLE_TAG = re.compile(
    "categorytree|ce|chem|gallery|graph|hiero|imagemap|inputbox|mapframe|math|ref|references|score|source"
    "|syntaxhighlight|table|templatedata|timeline",
    re.IGNORECASE,
)
# Links that show no words where they stand: files, categories and articles in other languages.
_HIDDEN_LINK = re.compile(r"\s*(file|image|media|category|[a-z]{2,3}(-[a-z]+)*)\s*:", re.IGNORECASE)
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTIED_PARENTHESES = re.compile(r" ?\([\s,;]*\)")
_EMPTIED_BEGINNING = re.compile(r"\([\s,;]+")
# What the parser leaves of tables that are not well formed.
_TABLE_LINE = ("{|", "|", "!")


def wiki_to_text(markup: str) -> str:
    """The prose of a Wikipedia article.

    Templates, tables, references, files, categories, formulas, headings and comments are left out; of a link, its
    words stay. Paragraphs stand on lines of their own.
    """
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    try:
        text = _prose(mwparserfromhell.parse(_MAGIC_WORD.sub("", markup)))
    except ParserError:
        return ""
    text = _EMPTIED_BEGINNING.sub("(", _EMPTIED_PARENTHESES.sub("", text)).replace("''", "")
    text = text.encode(errors="ignore").decode()  # `&#xD800;` makes half of a surrogate pair
    lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(_TABLE_LINE))


def _prose(markup) -> str:
    from mwparserfromhell import nodes

    parts = []
    for node in markup.nodes if markup is not None else ():
        if isinstance(node, nodes.Text):
            parts.append(node.value)
        elif isinstance(node, nodes.Wikilink):
            if not _HIDDEN_LINK.match(str(node.title)):
                parts.append(_prose(node.text if node.text is not None else node.title).removeprefix(":"))
        elif isinstance(node, nodes.ExternalLink):
            parts.append(_prose(node.title))
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(node.normalize())
        elif isinstance(node, nodes.Tag):
            tag = str(node.tag).strip()
            if tag.lower() == "br":
                parts.append("\n")
            elif not _INVISIBLE_TAG.fullmatch(tag):
                parts.append(_prose(node.contents))
        elif isinstance(node, nodes.Heading):
            parts.append("\n")
    return "".join(parts)


# Hugging Face datasets.


class DatasetRows:
    """The rows of a Hugging Face dataset."""

    def __init__(self, name: str, dataset: "datasets.Dataset", text_field: str):
        _check_column(name, dataset.features.arrow_schema, text_field)
        self.name, self.text_field = name, text_field
        self.dataset = dataset.select_columns([text_field]).with_format("arrow")
        self.size = dataset.data.nbytes

    def documents(self) -> Iterator[Document]:
        rows = 0
        try:
            for batch in self.dataset.iter(ROWS_PER_BATCH):
                texts = batch.column(self.text_field)
                texts.validate(full=True)  # Arrow would follow a damaged file's offsets anywhere
                for text in texts.to_pylist():
                    rows += 1
                    yield Document(text or "", self.size * rows // len(self.dataset))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.name}: the dataset cannot be read on from row {rows + 1}: {one_line(error)}; fetch or make it "
                "again"
            ) from error


def load_saved_dataset(directory: Path) -> "datasets.Dataset":
    """Loads a dataset that `save_to_disk` wrote, memory-mapped; of a DatasetDict the `train` split.

    Raises:
        InputError: if the directory holds none, it is damaged, or it has no `train` split.
    """
    import datasets

    path = directory
    if (directory / "dataset_dict.json").is_file():
        path = directory / "train"
        if not path.is_dir():
            splits = sorted(state.parent.name for state in directory.glob("*/state.json"))
            raise InputError(f"{directory}: no split `train`; name one of {_inside(directory, splits)}")
    try:
        _check_data_files(path)
        return datasets.load_from_disk(str(path))
    except Exception as error:  # broken files make `datasets` raise anything
        raise InputError(
            f"{path}: no saved Hugging Face dataset that can be read: {one_line(error)}; make it again"
        ) from error


def _check_data_files(directory: Path) -> None:
    """Raises a ValueError if a saved dataset says that a file of its is outside of its directory."""
    for file in read_json(directory / "state.json")["_data_files"]:
        if not Path(os.path.normpath(directory / file["filename"])).is_relative_to(os.path.normpath(directory)):
            raise ValueError(f"its file {shown(file['filename'])} is outside of it")


def _inside(directory: Path, names: Iterable[str]) -> str:
    return ", ".join(str(directory / name) for name in names)


def _load_from_hub(name: str) -> "datasets.Dataset":
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    repository, config, split = (*name.split(":", 2), "", "")[:3]
    try:
        return datasets.load_dataset(repository, config or None, split=split or "train")
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        remedy = "check the name and the connection"
        if "script" in str(error):
            remedy = "datasets that run code of their own are not loaded: take a copy of it in parquet"
        raise InputError(
            f"{name}: neither a file here nor a dataset that the Hugging Face Hub gives: {one_line(error)}; {remedy}"
        ) from error


READERS = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".txt": _read_plain_text,
    ".tsv": _read_tab_separated,
    ".xml": _read_wikipedia,
    ".parquet": _read_parquet,
}
