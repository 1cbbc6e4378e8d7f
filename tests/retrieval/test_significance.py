"""Intervals and tests against SciPy's own, exact ones and values known beforehand."""

import numpy as np
import pytest
import scipy.stats

from retromae_jax.retrieval.metrics import Scores
from retromae_jax.retrieval.significance import (
    Difference,
    _parts,
    adjusted,
    bootstrap,
    differences,
    holm,
    intervals,
    plus_minus,
    randomization_test,
    t_test,
)


def scored(values: list[float]) -> Scores:
    per_query = {f"q{number}": {"MAP": value, "MRR@10": value / 2} for number, value in enumerate(values)}
    return Scores({"MAP": float(np.mean(values)), "MRR@10": float(np.mean(values)) / 2}, per_query)


@pytest.fixture
def systems() -> np.ndarray:
    """Reciprocal ranks of two systems that go together, [Q, 2]."""
    random = np.random.default_rng(1)
    before = 1 / random.integers(1, 12, 150)
    return np.stack([before, np.maximum(before, 1 / random.integers(1, 40, 150)) - 0.02], axis=1)


def test_intervals_are_scipys(systems):
    for values, (low, high) in zip(systems.T, bootstrap(systems), strict=True):
        known = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=0)
        width = known.confidence_interval.high - known.confidence_interval.low
        assert (low, high) == pytest.approx(tuple(known.confidence_interval), abs=0.03 * width)
        # The queries are many enough for the normal approximation to be near.
        assert high - low == pytest.approx(2 * 1.96 * values.std() / len(values) ** 0.5, rel=0.05)


def test_tables_show_half_the_width():
    assert plus_minus(0.38214, (0.377, 0.3872)) == "0.3821 ± 0.0051"
    assert plus_minus(0.1, (-0.1, 0.3), "+") == "+0.1000 ± 0.2000"


def test_intervals_of_few_queries():
    # The mean of two draws of 0 and 1 is 0 and 1 with a probability of 1/4 each.
    assert bootstrap(np.array([[0.0], [1.0]])) == [(0.0, 1.0)]
    assert bootstrap(np.array([[0.3]])) == [pytest.approx((0.3, 0.3))]


def test_draws_are_the_same_each_time_and_for_each_measure(systems):
    assert bootstrap(systems) == bootstrap(systems)
    assert bootstrap(systems)[1] == pytest.approx(bootstrap(systems[:, 1:])[0])
    gains = systems[:, 1:] - systems[:, :1]
    assert randomization_test(gains) == randomization_test(np.hstack([gains, gains]))[1:]


def test_many_queries_are_drawn_less_often():
    for queries, resamples in [(1, 10_000), (10_000, 10_000), (50_000, 2_000), (10**6, 1_000)]:
        assert sum(rows for _, rows in _parts(queries)) == resamples


def test_randomization_test_is_the_exact_one():
    gains = np.array([0.5, 0.25, -0.125, 0.5, 0.0, 1.0, 0.1, -0.3])
    exact = scipy.stats.permutation_test((gains,), np.mean, permutation_type="samples").pvalue
    assert randomization_test(gains[:, None]) == pytest.approx([exact], abs=0.01)
    # Of five gains, all signs are alike in 2 of 32 cases.
    assert randomization_test(np.full((5, 1), 0.1)) == pytest.approx([2 / 32], abs=0.01)
    assert randomization_test(np.zeros((5, 1))) == [1.0]
    # What cannot be by chance is as small as so many draws can tell.
    assert randomization_test(np.full((100, 1), 0.1)) == [pytest.approx(1 / 10_001)]


def test_t_test_is_scipys(systems):
    before, after = systems.T
    gains = np.stack([after - before, np.zeros(150), np.full(150, 0.125)], axis=1)
    assert t_test(gains) == pytest.approx([scipy.stats.ttest_rel(after, before).pvalue, 1.0, 0.0])
    assert t_test(gains[:1]) == [1.0, 1.0, 1.0]


def test_differences_of_scores():
    before, after = scored([0.0, 0.5, 1.0, 0.2]), scored([0.5, 0.5, 0.9, 0.7])
    found = differences(before, after, ["MRR@10", "MAP"])
    assert list(found) == ["MRR@10", "MAP"]
    gain = found["MAP"]
    assert gain.mean == pytest.approx(0.225) and found["MRR@10"].mean == pytest.approx(0.1125)
    assert (gain.better, gain.worse) == (2, 1)
    assert gain.interval[0] < gain.mean < gain.interval[1]
    assert intervals(before).keys() == before.means.keys()


def test_holm():
    # The example of R's p.adjust and of statsmodels' multipletests.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_p_values_of_each_measure_are_adjusted_over_the_comparisons():
    def compared(**p_values: float) -> dict[str, Difference]:
        return {name: Difference(0.1, (0.0, 0.2), p, p / 2, 1, 0) for name, p in p_values.items()}

    first, second = adjusted([compared(MAP=0.01, nDCG=0.02), compared(MAP=0.03)])
    assert (first["MAP"].randomization_p, second["MAP"].randomization_p) == pytest.approx((0.02, 0.03))
    assert (first["MAP"].t_p, first["nDCG"].randomization_p) == pytest.approx((0.01, 0.02))
    assert adjusted([]) == []
