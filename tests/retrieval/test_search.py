import faiss
import jax
import ml_dtypes
import numpy as np
import pytest

from benchmarks.search import differences
from retromae_jax.data.retrieval import load_collection
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models import lexical
from retromae_jax.parallel import DATA
from retromae_jax.retrieval import device_search, faiss_search, lexical_search, slices
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.retrieval.search import Method, PassageIndex
from retromae_jax.retrieval.top_k import TopK

EXACT = ["flat", "device"]


def brute_force(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def search(queries, passages, k, method="flat", **settings):
    return PassageIndex(passages, Method.parse(method), **settings).search(queries, k)


@pytest.fixture
def rows_at_once(monkeypatch):
    """Sets how many passages are a slice, and how many queries are searched at once."""

    def set_rows(rows: int, dimension: int, queries: int = 10) -> None:
        monkeypatch.setattr(slices, "SLICE_BYTES", 4 * dimension * rows)
        monkeypatch.setattr(device_search, "PASSAGES_AT_ONCE", -(-rows // jax.device_count()))
        for module in (device_search, faiss_search, lexical_search):
            monkeypatch.setattr(module, "QUERIES_AT_ONCE", queries)

    return set_rows


def whole_numbers(queries: int, passages: int, dimension: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers: products are exact, and most passages tie with others, also over slices and devices."""
    generator = np.random.default_rng(0)
    return (
        generator.integers(-2, 3, (queries, dimension)).astype(np.float32),
        generator.integers(-1, 2, (passages, dimension)).astype(np.float32),
    )


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("k, rows", [(1, 60), (5, 10**6), (150, 60), (150, 333), (1000, 333)])
def test_against_brute_force_with_many_ties(method, k, rows, rows_at_once):
    rows_at_once(rows, 8)
    queries, passages = whole_numbers(25, 1000)
    scores, indices = search(queries, passages, k, method)
    wanted_scores, wanted_indices = brute_force(queries, passages, k)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("method", EXACT)
def test_shares_of_hosts_are_searched_alone(method, rows_at_once):
    rows_at_once(60, 8)
    queries, passages = whole_numbers(25, 500)
    scores, indices = search(queries, passages, 40, method, share=range(130, 321))
    wanted_scores, wanted_indices = brute_force(queries, passages[130:321], 40)
    np.testing.assert_array_equal(indices, 130 + wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)
    assert (search(queries, passages, 3, method, share=range(130, 130))[1] == -1).all()

    # What hosts find together, one of them nothing.
    together = TopK(25, 40)
    for share in (range(130), range(130, 130), range(130, 321), range(321, 500)):
        together.add(*search(queries, passages, 40, method, share=share))
    wanted_scores, wanted_indices = brute_force(queries, passages, 40)
    np.testing.assert_array_equal(together.indices, wanted_indices)
    np.testing.assert_array_equal(together.scores, wanted_scores)


@pytest.mark.parametrize("devices", [1, 3])
def test_devices_do_not_matter(devices, rows_at_once):
    queries, passages = whole_numbers(25, 700)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (DATA,))
    rows_at_once(80, 8)
    scores, indices = device_search.search(queries, slices.Slices(passages, range(700), "search"), 30, mesh)
    wanted_scores, wanted_indices = brute_force(queries, passages, 30)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)


@pytest.mark.parametrize("k, rows", [(5, 60), (150, 10**6)])
def test_lexical_parts_against_brute_force_with_many_ties(k, rows, rows_at_once):
    top_k, words, dense = 4, 30, 3
    rows_at_once(rows, dense + 2 * top_k)
    generator = np.random.default_rng(0)

    def embeddings(count: int) -> tuple[np.ndarray, np.ndarray]:
        scores = generator.integers(0, 3, (count, words)).astype(np.float32)
        packed = np.array(lexical.pack(generator.integers(-1, 2, (count, dense)).astype(np.float32), scores, top_k))
        return packed, np.asarray(lexical.expand(packed, top_k, words))

    (queries, query_vectors), (passages, passage_vectors) = embeddings(25), embeddings(400)
    # The last words of the vocabulary are in queries only.
    passages[:, -top_k:][passages[:, -top_k:] >= words - 3] = words - 4
    passages[:, -2 * top_k : -top_k][passages[:, -top_k:] == words - 4] = 0
    passage_vectors = np.asarray(lexical.expand(passages, top_k, words))
    scores, indices = search(queries, passages, k, lexical_top_k=top_k)
    wanted_scores, wanted_indices = brute_force(query_vectors, passage_vectors, k)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)


@pytest.mark.parametrize("method", EXACT)
def test_all_passages_alike(method, rows_at_once):
    rows_at_once(100, 4)
    _, indices = search(np.ones((3, 4), np.float32), np.ones((350, 4), np.float32), 120, method)
    np.testing.assert_array_equal(indices, np.tile(np.arange(120), (3, 1)))


@pytest.mark.parametrize("method", EXACT)
def test_zeros_tie_whatever_their_sign(method):
    queries = np.array([[-1, -1]], np.float32)
    passages = np.array([[0, 0], [-0.0, -0.0], [0, -0.0], [1, 0]], np.float32)
    assert search(queries, passages, 3, method)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_real_numbers_in_a_memory_map(method, dtype, tmp_path, rows_at_once):
    rows_at_once(100, 32)
    generator = np.random.default_rng(1)
    queries = generator.normal(size=(40, 32))
    stored = np.memmap(tmp_path / "passages", dtype, "w+", shape=(730, 32))
    stored[:] = generator.normal(size=stored.shape)
    scores, indices = search(queries, stored, 20, method)
    wanted_scores, wanted_indices = brute_force(queries, stored, 20)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_exact_methods_rank_real_embeddings_alike(minilm_directory, retrieval_data, rows_at_once):
    """Wherever scores are further apart than rounding."""
    collection = load_collection(retrieval_data / "cranfield", "test")
    encoder = Encoder.from_pretrained(str(minilm_directory))
    queries = encode_texts(encoder, list(collection.queries.values()), "query")
    passages = encode_texts(encoder, collection.passages.texts(), "passage")
    rows_at_once(300, encoder.dimension, 100)
    places, largest = differences(search(queries, passages, 200, "device"), search(queries, passages, 200, "flat"))
    assert places == 0
    assert largest < 1e-6


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("rows", [2, 100])
def test_fewer_passages_than_asked_for(method, rows, rows_at_once):
    rows_at_once(rows, 2)
    passages = np.array([[1, 0], [3, 0], [2, 0]], np.float32)
    scores, indices = search(np.array([[1, 0], [-1, 0]], np.float32), passages, 5, method)
    assert indices.tolist() == [[1, 2, 0, -1, -1], [0, 2, 1, -1, -1]]
    assert scores.tolist() == [[3, 2, 1, -np.inf, -np.inf], [-1, -2, -3, -np.inf, -np.inf]]


@pytest.mark.parametrize("method", [*EXACT, "hnsw"])
def test_values_that_are_not_finite(method, rows_at_once):
    rows_at_once(2, 2)
    passages = np.zeros((5, 2), np.float32)
    passages[3, 1] = np.nan
    with pytest.raises(InputError, match="embedding of passage 3 is not finite"):
        search(np.ones((1, 2), np.float32), passages, 2, method)
    with pytest.raises(InputError, match="embedding of query 0 is not finite"):
        search(np.full((1, 2), np.inf, np.float32), np.zeros((5, 2), np.float32), 2, method)


@pytest.mark.parametrize("method", EXACT)
def test_finite_values_whose_sum_is_not(method):
    assert search(np.array([[0, 1e-30]]), np.full((2, 2), 3e38, np.float32), 1, method)[1].tolist() == [[0]]


@pytest.mark.parametrize("method", [*EXACT, "hnsw"])
def test_widths_that_differ(method):
    with pytest.raises(InputError, match="embeddings of 3 numbers, passages of 2"):
        search(np.ones((1, 3), np.float32), np.ones((4, 2), np.float32), 2, method)


def clustered(queries: int, passages: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around few centres, as embeddings of texts are; queries are near to passages."""
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(200, dimension))
    vectors = centres[generator.integers(0, 200, passages)] + generator.normal(size=(passages, dimension))
    near = vectors[:queries] + 0.3 * generator.normal(size=(queries, dimension))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (near, vectors))


@pytest.mark.parametrize(
    "method, recall",
    [("hnsw", 0.95), ("hnsw:M=4,efConstruction=8,efSearch=10", 0.2), ("ivfpq:nlist=16,M=4,nprobe=8", 0.5)],
)
def test_approximate_indexes_find_most_and_say_how_many(method, recall, rows_at_once, capsys):
    rows_at_once(3000, 8)
    queries, passages = clustered(80, 10_500, 8)
    index = PassageIndex(passages.astype(np.float16), Method.parse(method), share=range(100, 10_500))
    scores, indices = index.search(queries, 10)
    assert indices.min() >= 100
    assert (np.diff(scores, axis=1) <= 0).all()
    wanted = brute_force(queries, passages[100:].astype(np.float16), 10)[1] + 100
    sample = np.sort(np.random.default_rng(0).permutation(80)[:64])
    found = np.mean([np.isin(*pair).mean() for pair in zip(wanted[sample], indices[sample], strict=True)])
    assert index.recall == pytest.approx(found, abs=0.01) and recall < found
    assert f"{method}: {index.recall:.2%} of the 10 best passages found, on 64 queries" in capsys.readouterr().err
    if method == "hnsw":
        np.testing.assert_allclose(scores[0], (queries @ passages.T)[0, indices[0]], atol=1e-3)
        assert (index.search(queries, 10_500)[1][:, -100:] == -1).all()


@pytest.mark.parametrize(
    "text, message",
    [
        ("annoy", "'annoy': no method of search; there are device, flat, hnsw, ivfpq"),
        ("flat:M=3", "'flat:M=3': flat has the parameters gpu"),
        ("device:x=1", r"device has the parameters \(none\)"),
        ("hnsw:M", "M is to be a whole number, as in M=1"),
        ("ivfpq:nlist=0", "nlist is to be a whole number"),
        ("flat:gpu=1", "Faiss has no GPU here; install faiss-gpu-cu12 in place of faiss-cpu, or gpu=0"),
    ],
)
def test_methods_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        Method.parse(text)


@pytest.mark.parametrize(
    "method, count, message",
    [
        ("ivfpq", 10_239, "10,239 passages of a host are too few to train IVF-PQ, which takes 10,240"),
        ("ivfpq:nlist=300", 10_240, "nlist=300: 10,240 passages of a host are enough to train 256 lists"),
        ("ivfpq:M=3", 10_240, "M=3 does not divide the 4 numbers of an embedding"),
    ],
)
def test_passages_that_make_no_index(method, count, message):
    with pytest.raises(InputError, match=message):
        PassageIndex(np.zeros((count, 4), np.float32), Method.parse(method))


def test_what_makes_no_index_shows_before_there_are_embeddings():
    with pytest.raises(InputError, match="M=7 does not divide the 768 numbers of an embedding"):
        Method.parse("ivfpq:M=7").check(1_000_000, 768)
    Method.parse("ivfpq:M=96").check(1_000_000, 768)
    Method.parse("flat").check(1, 768)


@pytest.mark.parametrize("method", ["hnsw", "ivfpq:M=7"])  # of which the second could not be made in any case
def test_embeddings_with_a_lexical_part_have_no_approximate_index(method):
    with pytest.raises(InputError, match="with a lexical part are searched exactly"):
        PassageIndex(np.zeros((4, 8), np.float32), Method.parse(method), lexical_top_k=2)


def test_methods_are_written_as_they_are_read():
    for text in ("device", "flat:gpu=0", "hnsw:M=8,efSearch=64"):
        assert str(Method.parse(text)) == text
    assert str(Method.default()) == "flat"  # on a CPU


def test_defaults_of_ivfpq_follow_the_collection():
    assert faiss_search.ivfpq_parameters(8_841_823, 768, {}, False) == {"nlist": 16384, "M": 192, "nprobe": 1024}
    assert faiss_search.ivfpq_parameters(8_841_823, 768, {}, True) == {"nlist": 16384, "M": 96, "nprobe": 1024}
    with pytest.raises(InputError, match="M=192 is more than the 96 bytes that Faiss searches on a GPU; add gpu=0"):
        faiss_search.ivfpq_parameters(8_841_823, 768, {"M": 192}, True)
    assert faiss_search.ivfpq_parameters(10_240, 100, {"nprobe": 3}, False) == {"nlist": 256, "M": 25, "nprobe": 3}


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, played by the CPU, which find what they are made to find."""
    error = [0.0]

    def knn_gpu(resources, queries, passages, k, metric, device):
        assert k <= 2048 and device in (0, 1) and resources is not None
        scores, indices = faiss.knn(queries, passages, k, metric=metric)
        return scores + np.float32(error[0]), indices

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    return error


@pytest.mark.parametrize("k", [40, 2047, 2048])
def test_gpus_of_faiss_find_what_the_cpu_finds(gpus, k, rows_at_once):
    rows_at_once(2100, 8)
    queries, passages = whole_numbers(25, 2500)
    scores, indices = search(queries, passages, k, "flat:gpu=1")
    wanted_scores, wanted_indices = brute_force(queries, passages, k)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_gpus_that_find_something_else_are_told(gpus):
    gpus[0] = 0.01
    queries, passages = whole_numbers(25, 500)
    with pytest.raises(InputError, match="other scores on its GPUs than on the CPU; search with flat:gpu=0"):
        search(queries, passages, 40)
    assert search(queries, passages, 40, "flat:gpu=0")[1].tolist() == brute_force(queries, passages, 40)[1].tolist()
