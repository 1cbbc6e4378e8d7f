"""Downloads from a server on this machine, which gives parts of files as the real ones do."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from eval import downloads
from eval.beir import DATASETS
from eval.downloads import DOWNLOADS, Download, fetch, main
from retromae_jax.errors import InputError


@pytest.fixture
def server(monkeypatch):
    """Files to serve by name, and the ranges that were asked for."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            if self.path[1:] not in files:
                self.send_error(404)
                return
            content, start = files[self.path[1:]], 0
            if asked[-1]:
                start = int(asked[-1].removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + files.get("stops after", len(content))])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", files, asked
        running.shutdown()


def tar(members):
    """A compressed tar archive of files, and of a link where the content is None."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content or b""))
    return packed.getvalue()


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def download(url, name, content, files=()):
    return Download(f"{url}/{name}", len(content), hashlib.md5(content).hexdigest(), files)


def names(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_what_was_broken_off_goes_on_where_it_stopped(server, tmp_path):
    url, files, asked = server
    files["qrels.txt"] = bytes(range(256)) * 40
    wanted = download(url, "qrels.txt", files["qrels.txt"])
    files["stops after"] = 7000
    with pytest.raises(InputError, match="cannot be fetched: the connection broke off; start again, and it goes on"):
        fetch(wanted, tmp_path / "new")
    fetch(wanted, tmp_path / "new")
    assert asked == [None, "bytes=7000-"]
    assert (tmp_path / "new" / "qrels.txt").read_bytes() == files["qrels.txt"]
    fetch(wanted, tmp_path / "new")
    assert len(asked) == 2 and names(tmp_path / "new") == ["qrels.txt"]


def test_all_of_it_was_there_but_not_checked(server, tmp_path):
    url, files, _ = server
    files["a.txt"] = b"all of it"
    (tmp_path / "a.txt.part").write_bytes(files["a.txt"])
    fetch(download(url, "a.txt", files["a.txt"]), tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == b"all of it"


def test_another_file_than_was_published_is_removed(server, tmp_path):
    url, files, _ = server
    files["a.zip"] = b"something else"
    with pytest.raises(InputError, match=r"a\.zip: the 14 bytes fetched are not the 9 of MD5 [0-9a-f]{32}"):
        fetch(download(url, "a.zip", b"published"), tmp_path)
    with pytest.raises(InputError, match="are not the 14 of MD5"):
        fetch(download(url, "a.zip", b"published data"), tmp_path)
    with pytest.raises(InputError, match=r"/b\.zip: cannot be fetched: HTTP Error 404"):
        fetch(download(url, "b.zip", b"published"), tmp_path)
    assert names(tmp_path) == []


def test_only_the_wanted_files_of_a_tar_archive_and_none_outside(server, tmp_path):
    url, files, _ = server
    files["c.tar.gz"] = tar(
        {"marco/para.txt": b"1\tpassage\n", "../../para.title.txt": b"1\ttitle\n", "x": b"", "y": None}
    )
    target = tmp_path / "data"
    fetch(download(url, "c.tar.gz", files["c.tar.gz"], ("para.txt", "para.title.txt")), target)
    assert names(tmp_path) == ["data/para.title.txt", "data/para.txt"]
    assert (target / "para.title.txt").read_text() == "1\ttitle\n"
    with pytest.raises(InputError, match=r"y not in it"):
        fetch(download(url, "c.tar.gz", files["c.tar.gz"], ("para.txt", "y")), target)


def test_a_zip_archive_is_one_directory(server, tmp_path):
    url, files, _ = server
    content = {"small/corpus.jsonl": "{}\n", "small/qrels/test.tsv": "a\tb\tc\n"}
    files["small.zip"] = zipped(content)
    wanted = download(url, "small.zip", files["small.zip"])
    fetch(wanted, tmp_path)
    fetch(wanted, tmp_path)
    assert names(tmp_path) == sorted(content)
    for name in ("small/../../stolen", "/stolen", "other/stolen"):
        files["small.zip"] = zipped(content | {name: "!"})
        with pytest.raises(InputError, match="does not lie in small/; do not trust it"):
            fetch(download(url, "small.zip", files["small.zip"]), tmp_path / "data")
        (tmp_path / "data" / "small.zip").unlink()
    assert names(tmp_path) == sorted(content)


def test_broken_archives(server, tmp_path):
    url, files, _ = server
    for name, wanted in (("a.zip", ()), ("a.tar.gz", ("a",))):
        files[name] = b"no archive"
        with pytest.raises(InputError, match=r"cannot be unpacked: .*; remove it and start again"):
            fetch(download(url, name, files[name], wanted), tmp_path)


def test_the_command(server, tmp_path, monkeypatch, capsys):
    url, files, _ = server
    files |= {"q.tsv.gz": b"queries", "2019qrels-pass.txt": b"qrels"}
    monkeypatch.setitem(
        downloads.DOWNLOADS,
        "dl19",
        tuple(download(url, name, files[name]) for name in ("q.tsv.gz", "2019qrels-pass.txt")),
    )
    main(["dl19", "--to", str(tmp_path)])
    assert names(tmp_path) == ["2019qrels-pass.txt", "q.tsv.gz"]
    for arguments, message in (
        (["bioasq"], "bioasq is behind a licence: apply at http://www.bioasq.org"),
        (["beer"], "there is no 'beer' to fetch; there are msmarco, rocketqa, dl19"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--to", str(tmp_path)])
        assert message in capsys.readouterr().err


def test_the_list_names_all_of_beir_and_msmarco(capsys):
    main([])
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(DATASETS) < listed.keys()
    assert "collection.tsv" in listed["msmarco"] and "1,057.7 MB" in listed["msmarco"]
    assert listed["rocketqa"].endswith("https://rocketqa.bj.bcebos.com/corpus/marco.tar.gz")
    assert "https://trec.nist.gov/data/cd45" in listed["robust04"]
    assert all(len(one.md5) == 32 for group in DOWNLOADS.values() for one in group if one.size)
