import jax.numpy as jnp
import numpy as np

from retromae_jax.models.lexical import expand, pack, unpack, word_scores


def test_the_highest_scores_are_kept_beside_the_dense_part():
    dense = jnp.array([[7.0, 8.0], [9.0, 0.0]])
    scores = jnp.array([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 4.0]])
    embeddings = pack(dense, scores, top_k=2)
    np.testing.assert_array_equal(embeddings, [[7, 8, 3, 2, 1, 3], [9, 0, 5, 4, 0, 3]])
    parts = unpack(np.asarray(embeddings), top_k=2)
    for part, expected in zip(parts, (dense, [[3, 2], [5, 4]], [[1, 3], [0, 3]]), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert parts[2].dtype == np.int32
    vectors = expand(embeddings, top_k=2, words=4)
    np.testing.assert_array_equal(vectors, [[7, 8, 0, 3, 0, 2], [9, 0, 5, 0, 0, 4]])
    # The inner product of two texts: of the dense parts, and of the one word that both kept.
    assert float(vectors[0] @ vectors[1]) == 7 * 9 + 2 * 4


def test_numbers_of_large_vocabularies_are_exact():
    scores = jnp.zeros((1, 250_002)).at[0, jnp.array([250_001, 249_999])].set(jnp.array([2.0, 1.0]))
    np.testing.assert_array_equal(unpack(pack(jnp.zeros((1, 1)), scores, 2), 2)[2], [[250_001, 249_999]])


def test_words_that_a_text_speaks_against_score_nothing():
    np.testing.assert_allclose(word_scores(jnp.array([-10_000.0, -1.0, 0.0, np.e - 1])), [0, 0, 0, 1], rtol=1e-6)
