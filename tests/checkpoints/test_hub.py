"""Models by name, from a local server that speaks the Hub's protocol."""

import hashlib
import json
import os
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


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.fetched = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(hub, cache, name):
    """Runs `resolve` in a process of its own, because the client reads the Hub's address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    code = f"from retromae_jax.checkpoints.hub import resolve; print(resolve({name!r}))"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


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
