"""A run's directory, which one training has at a time."""

import errno
import fcntl
import subprocess
import sys
from types import SimpleNamespace

import pytest

from retromae_jax.checkpoints.directory import UNFINISHED
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.pooling import EncoderSettings

HOLDER = """
import sys
from pathlib import Path
from retromae_jax.files import locked
with locked(Path(sys.argv[1])) as is_held:
    print(is_held, flush=True)
    sys.stdin.read()
"""


def begin(directory):
    run = Run(directory, 2)
    tokenizer = SimpleNamespace(save_pretrained=lambda path: None)
    run.begin("pretrain", BertConfig(), EncoderSettings("cls", False, 16), {}, {}, tokenizer)
    return run


def test_one_process_trains_in_a_directory_until_it_ends_or_is_killed(tmp_path):
    begin(tmp_path).close()
    saving = tmp_path / "checkpoints" / f"5{UNFINISHED}"
    saving.mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(InputError, match=rf"another process works there; .* remove {tmp_path / 'lock'}\)"):
            begin(tmp_path)
        assert saving.is_dir()
        Run(tmp_path).close()  # who only reads may
        other.kill()
    run = begin(tmp_path)
    assert not saving.exists()
    with pytest.raises(InputError, match="another process works there"):
        begin(tmp_path)
    run.close()
    begin(tmp_path).close()


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    begin(tmp_path).close()
