"""Lists, and fetches, the collections that `eval.msmarco` and `eval.beir` measure on.

    python -m eval.downloads                                        # what there is
    python -m eval.downloads msmarco dl19 dl20 --to data/msmarco    # fetch it there
    python -m eval.downloads rocketqa --to data/msmarco             # passages with titles, which are then preferred
    python -m eval.downloads scifact nfcorpus --to data/beir

A broken-off download goes on where it stopped, and is checked against its published size and MD5 before it is unpacked.
Unpacked archives are removed. Sizes and checksums are those that ir_datasets 0.6.3 lists.
"""

import argparse
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from retromae_jax.errors import InputError, exits_on_input_error, one_line, shown
from retromae_jax.logging import Progress, say, table

MSMARCO = "https://msmarco.z22.web.core.windows.net/msmarcoranking"
TREC = "https://trec.nist.gov/data/deep"
BEIR = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
# Without, MS MARCO's host begins anew each time.
HEADERS = {"X-Ms-Version": "2019-12-12"}
# Where to apply; https://github.com/beir-cellar/beir/tree/main/examples/dataset says how to make BEIR's files of it.
LICENSED = {
    "bioasq": "http://www.bioasq.org",
    "signal1m": "https://research.signal-ai.com/datasets/signal1m-tweetir.html",
    "trec-news": "https://trec.nist.gov/data/wapost",
    "robust04": "https://trec.nist.gov/data/cd45",
}
BYTES_AT_ONCE = 2**20
SECONDS_TO_WAIT = 60


class Download(NamedTuple):
    """A file to fetch.

    Attributes:
        url: of the file.
        size: in bytes; None where nobody has published it.
        md5: in hexadecimal; empty where nobody has published it.
        files: what is taken out of a tar archive. All of a zip archive is, a directory of the archive's name.
        what: what it is, for the list.
    """

    url: str
    size: int | None
    md5: str
    files: tuple[str, ...] = ()
    what: str = ""

    @property
    def name(self) -> str:
        """The file's."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def results(self) -> tuple[str, ...]:
        """What there is in the end, in the directory that it is fetched into."""
        return self.files or (self.name.removesuffix(".zip"),)


def _beir(name: str, size: int, md5: str) -> dict[str, tuple[Download, ...]]:
    return {name: (Download(f"{BEIR}/{name}.zip", size, md5, what=f"BEIR, as {name}/"),)}


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "msmarco": (
        Download(
            f"{MSMARCO}/collectionandqueries.tar.gz",
            1057717952,
            "31644046b18952c1386cd4564ba2ae69",
            (
                "collection.tsv",
                "queries.train.tsv",
                "queries.dev.small.tsv",
                "qrels.train.tsv",
                "qrels.dev.small.tsv",
            ),
            "MS MARCO's passages without titles, collection.tsv; queries and qrels of train and dev",
        ),
    ),
    "rocketqa": (
        Download(
            "https://rocketqa.bj.bcebos.com/corpus/marco.tar.gz",
            None,
            "",
            ("para.txt", "para.title.txt"),
            "MS MARCO's passages with titles, para.txt and para.title.txt",
        ),
    ),
    "dl19": (
        Download(
            f"{MSMARCO}/msmarco-test2019-queries.tsv.gz",
            4276,
            "eda71eccbe4d251af83150abe065368c",
            what="queries of TREC 2019's Deep Learning track",
        ),
        Download(f"{TREC}/2019qrels-pass.txt", 187092, "2f4be390198da108f6845c822e5ada14", what="its qrels"),
    ),
    "dl20": (
        Download(
            f"{MSMARCO}/msmarco-test2020-queries.tsv.gz",
            4131,
            "00a406fb0d14ed3752d70d1e4eb98600",
            what="queries of TREC 2020's Deep Learning track",
        ),
        Download(f"{TREC}/2020qrels-pass.txt", 218617, "0355ccee7509ac0463e8278186cdd8d1", what="its qrels"),
    ),
    **_beir("trec-covid", 73876720, "ce62140cb23feb9becf6270d0d1fe6d1"),
    **_beir("nfcorpus", 2448432, "a89dba18a62ef92f7d323ec890a0d38d"),
    **_beir("nq", 498307926, "d4d3d2e48787a744b6f6e691ff534307"),
    **_beir("hotpotqa", 654025350, "f412724f78b0d91183a0e86805e16114"),
    **_beir("fiqa", 17948027, "17918ed23cd04fb15047f73e6c3bd9d9"),
    **_beir("arguana", 3773617, "8ad3e3c2a5867cdced806d6503f29b99"),
    **_beir("webis-touche2020", 227132363, "46f650ba5a527fc69e0a6521c5a23563"),
    **_beir("cqadupstack", 5343728040, "4e41456d7df8ee7760a7f866133bda78"),
    **_beir("quora", 15853968, "18fb154900ba42a600f84b839c173167"),
    **_beir("dbpedia-entity", 639285131, "c2a39eb420a3164af735795df012ac2c"),
    **_beir("scidocs", 142471588, "38121350fc3a4d2f48850f6aff52e4a9"),
    **_beir("fever", 1236988269, "5a818580227bfb4b35bb6fa46d9b6c03"),
    **_beir("climate-fever", 1228666652, "8b66f0a9126c521bae2bde127b4dc99d"),
    **_beir("scifact", 2816079, "5f7d1de60b170fc8027bb7898e2efca1"),
}


def listing() -> str:
    """What there is to fetch, and what there is not."""

    def size(number: int | None) -> str:
        if number is None:
            return "not published"
        return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:,.1f} kB"

    rows = [
        {"name": name, "size": size(download.size), "what": download.what, "from": download.url}
        for name, downloads in DOWNLOADS.items()
        for download in downloads
    ]
    licensed = [{"name": name, "apply at": url} for name, url in LICENSED.items()]
    return (
        f"{table(rows)}\n\n{table(licensed, 'behind licences')}\n"
        "How to make BEIR's files of them: https://github.com/beir-cellar/beir/tree/main/examples/dataset"
    )


def fetch(download: Download, directory: Path) -> None:
    """Fetches a file into a directory, going on with what is there of it, checks it, and unpacks archives.

    Raises:
        InputError: if the file cannot be fetched, is not what was published, or would unpack outside the directory.
    """
    if all((directory / name).exists() for name in download.results):
        say(f"{', '.join(str(directory / name) for name in download.results)}: there already")
        return
    path = directory / download.name
    unfinished = path.with_name(f"{path.name}.part")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            _fetch(download, unfinished)
            _check(download, unfinished)
            unfinished.replace(path)
        if download.files:
            _unpack_files(download, path, directory)
        elif path.suffix == ".zip":
            _unpack_directory(download, path, directory)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"{download.url}: cannot be fetched: {one_line(error)}; start again, and it goes on where it stopped"
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked: {one_line(error)}; remove it and start again") from error
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror or error}; make room or choose another --to") from error


def _fetch(download: Download, path: Path) -> None:
    done = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(download.url, headers=HEADERS | ({"Range": f"bytes={done}-"} if done else {}))
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS_TO_WAIT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is no more
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0  # the host sends all of it
        total = None if response.length is None else done + response.length
        with (
            path.open("ab" if done else "wb") as file,
            Progress(f"fetch {download.name}", total, "bytes", done) as progress,
        ):
            while chunk := response.read(BYTES_AT_ONCE):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and path.stat().st_size < total:
        raise ConnectionError("the connection broke off")


def _check(download: Download, path: Path) -> None:
    size = path.stat().st_size
    is_right = download.size in (size, None)
    if is_right and download.md5:
        with path.open("rb") as file:
            is_right = hashlib.file_digest(file, "md5").hexdigest() == download.md5
    if not is_right:
        path.unlink()
        raise InputError(
            f"{download.url}: the {size:,} bytes fetched are not the {download.size:,} of MD5 {download.md5} that were "
            "published; they are removed: start again, and if that does not help, fetch the file another way"
        )


def _unpack_files(download: Download, archive: Path, directory: Path) -> None:
    """Takes the wanted files out of a tar archive, and removes it."""
    say(f"unpack {archive}")
    found = set()
    with tarfile.open(archive) as opened:
        for member in opened:
            # By its own name, wherever it lies there: so it cannot lie outside the directory.
            name = Path(member.name).name
            content = opened.extractfile(member) if member.isfile() and name in download.files else None
            if content is not None:
                with (directory / f"{name}.part").open("wb") as file:
                    shutil.copyfileobj(content, file, BYTES_AT_ONCE)
                (directory / f"{name}.part").replace(directory / name)
                found.add(name)
    if missing := set(download.files) - found:
        raise InputError(f"{archive}: {', '.join(sorted(missing))} not in it; fetch the file another way")
    archive.unlink()


def _unpack_directory(download: Download, archive: Path, directory: Path) -> None:
    """Unpacks a zip archive, which holds one directory of its own name, and removes it."""
    say(f"unpack {archive}")
    (name,) = download.results
    with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=directory) as unfinished:
        for member in opened.namelist():
            path = Path(member)
            if path.parts[0] != name or ".." in path.parts:
                raise InputError(f"{archive}: its file {shown(member)} does not lie in {name}/; do not trust it")
        opened.extractall(unfinished)
        Path(unfinished, name).replace(directory / name)
    archive.unlink()


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.downloads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch (default: nothing, the list is shown)")
    parser.add_argument("--to", type=Path, help="directory to fetch into")
    arguments = parser.parse_args(argv)
    if not arguments.names:
        print(listing())
        return
    if arguments.to is None:
        parser.error("--to says where to")
    for name in arguments.names:
        if name in LICENSED:
            raise InputError(f"{name} is behind a licence: apply at {LICENSED[name]}")
        if name not in DOWNLOADS:
            raise InputError(f"there is no {name!r} to fetch; there are {', '.join(DOWNLOADS)}")
    for name in arguments.names:
        for download in DOWNLOADS[name]:
            fetch(download, arguments.to)


if __name__ == "__main__":
    main()
