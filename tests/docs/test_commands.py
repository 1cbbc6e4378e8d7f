"""Commands and code in the documentation run, or say what they need that is not here.

A block of code is fenced, and names its language. One that cannot run here begins with "```sh needs WHAT".
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import FAST_COMPILING
from train import demo_data

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(?P<language>\w+)(?: needs (?P<needs>[^\n]+))?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ {4,}(python|pip|make|git|\.venv|source) ", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


class Block(NamedTuple):
    language: str
    code: str


def to_run(document: Path) -> list[Block]:
    if document.name == "api.md":  # whose blocks go on with each other's variables: test_api.py runs them
        return []
    found = FENCED.finditer(document.read_text(encoding="utf-8"))
    return [
        Block(one["language"], one["code"]) for one in found if one["language"] in ("sh", "python") and not one["needs"]
    ]


def name_of(document: Path) -> str:
    return document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_command_hides_from_these_tests(document):
    assert not COMMAND.findall(FENCED.sub("", document.read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_what_documents_link_to_exists(document):
    links = LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory, demo_packages) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "demo"
    demo_data.make_demo_data(directory)
    return directory


@pytest.mark.long
@pytest.mark.parametrize("document", [one for one in DOCUMENTS if to_run(one)], ids=name_of)
def test_commands_of(document, demo, tmp_path):
    """All blocks of a document, in order, in one directory."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "demo").symlink_to(demo)
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        # One device, as most readers have, and not these tests' eight.
        "XLA_FLAGS": FAST_COMPILING,
        "HF_HUB_OFFLINE": "1",
    }
    for block in to_run(document):
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        ended = subprocess.run(
            [*command, block.code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, f"{block.code}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
