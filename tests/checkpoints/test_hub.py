"""Models by name, from and to a local server that speaks the Hub's protocol."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights", "pytorch_model.bin": b"pickle"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Has one model, `someone/encoder`."""

    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/someone/encoder/tree/"):
            entries = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in FILES.items()]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/someone/encoder"):
            siblings = [{"rfilename": file} for file in FILES]
            self.answer(json.dumps({"id": "someone/encoder", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/someone/encoder/resolve/") and name in FILES:
            self.server.fetched.add(name)
            self.answer(FILES[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(handler):
    """A server of its own thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub():
    with serving(Hub) as server:
        server.fetched = set()
        yield server


def address_of(server):
    return f"http://127.0.0.1:{server.server_port}"


def run(address, cache, code, **variables):
    """Runs code in a process of its own, because the client reads the Hub's address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def resolve(hub, cache, name):
    code = f"from retromae_jax.checkpoints.hub import resolve; print(resolve({name!r}))"
    return run(address_of(hub), cache, code)


def test_a_name_is_downloaded_without_pickles(hub, tmp_path):
    done = resolve(hub, tmp_path, "someone/encoder")
    assert done.returncode == 0, done.stderr
    directory = done.stdout.strip().splitlines()[-1]
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors"]
    assert "pytorch_model.bin" not in hub.fetched
    with open(os.path.join(directory, "model.safetensors"), "rb") as file:
        assert file.read() == b"weights"


def test_an_unknown_name_ends_in_a_clear_error(hub, tmp_path):
    done = resolve(hub, tmp_path, "someone/nothing")
    assert done.returncode != 0
    message = "'someone/nothing' is no directory here, and the Hugging Face Hub did not give it"
    assert message in done.stderr.strip().splitlines()[-1]


class Writable(BaseHTTPRequestHandler):
    """Takes what is pushed to it by whom the token is of; keeps repositories and files in memory."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            self.answer({"url": f"http://{self.headers['Host']}/me/whales", "name": "me/whales", "id": "me/whales"})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif self.path == "/api/models/me/whales/preupload/main":
            asked = json.loads(content)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular"}
                for f in asked
            ]
            self.answer({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})
        elif self.path == "/me/whales.git/info/lfs/objects/batch":
            objects = json.loads(content)["objects"]
            upload = {"href": f"http://{self.headers['Host']}/upload"}
            self.answer({"transfer": "basic", "objects": [o | {"actions": {"upload": upload}} for o in objects]})
        elif self.path == "/api/models/me/whales/commit/main":
            lines = [json.loads(line) for line in content.splitlines()]
            self.server.committed += [line["value"] for line in lines]
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/whales/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({}, 404)

    def do_PUT(self):
        self.server.uploaded.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({})

    def do_GET(self):
        self.answer({"sha": COMMIT, "id": "me/whales", "siblings": []})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def writable():
    with serving(Writable) as server:
        server.created, server.committed, server.uploaded = [], [], []
        yield server


def push(address, directory, token, is_public=False):
    code = (
        f"from retromae_jax.checkpoints.hub import *; print(push(Path({str(directory)!r}), 'me/whales', {is_public}))"
    )
    return run(address, directory.parent / "cache", code, HF_TOKEN=token)


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "exported" / "1_Pooling").mkdir(parents=True)
    for name, content in {
        "README.md": b"# Whales",
        "model.safetensors": b"weights",
        "1_Pooling/config.json": b"{}",
    }.items():
        (tmp_path / "exported" / name).write_bytes(content)
    return tmp_path / "exported"


@pytest.mark.parametrize("is_public", [False, True])
def test_a_directory_is_pushed(writable, exported, is_public):
    done = push(address_of(writable), exported, "hf_good", is_public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith("/me/whales")
    (created,) = writable.created
    assert (created["name"], created["organization"], created["visibility"]) == (
        "whales",
        "me",
        "public" if is_public else "private",
    )
    assert {one["path"] for one in writable.committed if "path" in one} == {
        "README.md",
        "model.safetensors",
        "1_Pooling/config.json",
    }
    assert writable.uploaded == [b"weights"]


def test_what_cannot_be_pushed_ends_in_a_clear_error(writable, exported):
    done = push(address_of(writable), exported, "hf_bad")
    line = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode != 0 and "'me/whales' could not be pushed to the Hugging Face Hub: " in line and "401" in line
    )
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = push(f"http://127.0.0.1:{closed.getsockname()[1]}", exported, "hf_good")
    assert "the export is in" in done.stderr.strip().splitlines()[-1]
