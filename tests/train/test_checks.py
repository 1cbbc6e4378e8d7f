"""Checks before the first step that need no training to be tried."""

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from retromae_jax.checkpoints.loading import Source
from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.pooling import EncoderSettings
from train import checks

Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_for_the_checkpoints_is_told_with_the_other_problems(tmp_path, monkeypatch):
    """BERT-base has 110 million parameters, of which each, with AdamW's moments, takes 12 bytes."""
    workdir = tmp_path / "runs" / "new"
    config = ConfigDict({"workdir": str(workdir), "checkpoints_to_keep": 3, "stall_minutes": 0.0, "trackers": ()})
    config.skipped_steps_allowed = -1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 5 * 10**9))
    with pytest.raises(InputError) as error:
        checks.fit(checks.watching(config), checks.room(config, BertConfig()))
    assert "2 problem(s)" in str(error.value)
    assert "stall_minutes 0.0 is not more than 0; skipped_steps_allowed -1 is less than 0" in str(error.value)
    assert f"{workdir} has room for 5.0 GB; checkpoints_to_keep 3 of at least 1.3 GB each" in str(error.value)
    assert "need 5.2 GB" in str(error.value) and not workdir.exists()
    # What the run's own checkpoints take is room for their successors.
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    with (workdir / "checkpoints" / "1" / "data").open("wb") as file:
        file.truncate(3 * 10**8)
    assert checks.room(config, BertConfig()) is None


def test_attention_that_cannot_be_computed_here_is_told_with_the_other_problems():
    config = ConfigDict({"attention": "flash", "compute_dtype": "float32"})
    assert checks.attention(config, BertConfig()).startswith("attention 'flash' is unknown; known are auto, plain,")
    config.attention = "pallas"
    assert checks.attention(config, BertConfig()).startswith("attention 'pallas' is for TPUs, and the devices are cpu")
    config.compute_dtype = "float8"  # which is told already
    assert checks.attention(config, BertConfig()) is None
    config.update(attention="auto", compute_dtype="bfloat16")
    assert checks.attention(config, BertConfig()) is None


def test_one_encoder_does_not_start_from_two():
    two = EncoderSettings("cls", False, 64, untie_encoder=True)
    source = Source(Path("two"), BertConfig(), Path("two"), two)
    config = ConfigDict({"init": "two", "untie_encoder": False})
    assert checks.one_encoder(config, source).startswith("init two holds two encoders, for queries and for passages;")
    assert checks.one_encoder(ConfigDict({"init": "two"}), source) is not None  # pretraining and reranking
    assert checks.one_encoder(config, dataclasses.replace(source, settings=EncoderSettings("cls", False, 64))) is None
    config.untie_encoder = True
    assert checks.one_encoder(config, source) is None
