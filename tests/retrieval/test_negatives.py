import numpy as np
import pytest

from retromae_jax.retrieval.negatives import NegativeSampler

# Ranks 1 to 8; passages 12 and 15 are relevant.
SCORES = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, -np.inf], np.float32)
INDICES = np.array([10, 11, 12, 13, 14, 15, 16, 17, -1])
RELEVANT = np.array([12, 15, 99])


def sample(from_rank=1, to_rank=200, margin=None, per_query=None, seed=0, query=0, relevant=RELEVANT):
    drawn = NegativeSampler(from_rank, to_rank, margin, per_query, seed).sample(query, SCORES, INDICES, relevant)
    return drawn.negatives.tolist(), *drawn[1:]


@pytest.mark.parametrize(
    "settings, negatives, window, relevant, likely_relevant",
    [
        ({}, [10, 11, 13, 14, 16, 17], 8, 2, 0),
        ({"from_rank": 2, "to_rank": 5}, [11, 13, 14], 4, 1, 0),
        ({"from_rank": 9}, [], 0, 0, 0),
        # The best relevant passage scores 7: with a margin of 1, passages above 6 are left out.
        ({"margin": 0.0}, [13, 14, 16, 17], 8, 2, 2),
        ({"margin": 1.0}, [13, 14, 16, 17], 8, 2, 2),
        ({"margin": 1.5}, [14, 16, 17], 8, 2, 3),
        ({"margin": 1.5, "from_rank": 4, "to_rank": 5}, [14], 2, 0, 1),
        # No relevant passage was found: everything scores above it.
        ({"margin": 0.0, "relevant": np.array([99])}, [], 8, 0, 8),
    ],
)
def test_windows_and_margins(settings, negatives, window, relevant, likely_relevant):
    assert sample(**settings) == (negatives, window, relevant, likely_relevant)


def test_draws_follow_from_seed_and_query():
    drawn = [tuple(sample(per_query=3, seed=seed, query=query)[0]) for seed in range(3) for query in range(20)]
    assert drawn == [tuple(sample(per_query=3, seed=seed, query=query)[0]) for seed in range(3) for query in range(20)]
    assert len(set(drawn)) > 10  # of 20 possible
    assert all(list(one) == sorted(one) and len(one) == 3 for one in drawn)  # the hardest first
    assert set().union(*drawn) == {10, 11, 13, 14, 16, 17}
    assert sample(per_query=100)[0] == [10, 11, 13, 14, 16, 17]
