"""How certain means over queries are, and whether two systems differ by more than the choice of queries explains.

Draws follow from a fixed seed, so that the same scores give the same numbers, and are shared by all measures.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from retromae_jax.retrieval.metrics import Scores

SEED = 0
# Resamples are 10,000 of up to 10,000 queries; of more, so many fewer that all draws take the same time, but not less
# than 1,000.
RESAMPLES, FEWEST_RESAMPLES, DRAWS = 10_000, 1_000, 10**8
# Draws in memory at once.
DRAWS_AT_ONCE = 2**20

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """What queries gain in a measure from one system to another.

    Attributes:
        mean: of the queries' differences.
        interval: its 95 % confidence interval.
        randomization_p, t_p: two-sided p-values of the paired randomization test and of the paired t-test.
        better, worse: how many queries gain and lose.
    """

    mean: float
    interval: Interval
    randomization_p: float
    t_p: float
    better: int
    worse: int


def intervals(scores: Scores) -> dict[str, Interval]:
    """The 95 % confidence interval of each measure's mean over the queries."""
    return dict(zip(scores.means, bootstrap(scores.values(list(scores.means))), strict=True))


def plus_minus(mean: float, interval: Interval, sign: str = "") -> str:
    """A mean and half the width of its interval, as tables show them; `+` as `sign` signs all means."""
    return f"{mean:{sign}.4f} ± {(interval[1] - interval[0]) / 2:.4f}"


def differences(before: Scores, after: Scores, measures: Sequence[str]) -> dict[str, Difference]:
    """Compares two systems' scores of the same queries: measure -> difference."""
    gains = after.values(measures) - before.values(measures)
    columns = zip(
        gains.mean(axis=0).tolist(),
        bootstrap(gains),
        randomization_test(gains),
        t_test(gains),
        np.sum(gains > 0, axis=0).tolist(),
        np.sum(gains < 0, axis=0).tolist(),
        strict=True,
    )
    return {measure: Difference(*column) for measure, column in zip(measures, columns, strict=True)}


def bootstrap(values: np.ndarray) -> list[Interval]:
    """95 % confidence intervals of means over queries, by the percentile bootstrap.

    They reach from the 2.5th to the 97.5th percentile of the means of as many queries drawn with replacement (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; for retrieval: Sakai, SIGIR 2006). Those of a
    handful of queries are too narrow.

    Args:
        values: of M measures for Q queries, or differences of such: [Q, M].
    """
    queries = len(values)
    sums = []
    for random, rows in _parts(queries):
        drawn = random.integers(queries, size=(rows, queries), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        sums.append(times.astype(np.float64) @ values)
    low, high = np.quantile(np.concatenate(sums) / queries, (0.025, 0.975), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def randomization_test(differences: np.ndarray) -> list[float]:
    """Two-sided p-values of the paired randomization test (Smucker, Allan and Carterette, CIKM 2007).

    If two systems were alike, each query's difference could as well have the other sign. The p-value is the share of
    draws of all signs, the signs as they are being one of them, of which the mean lies at least as far from 0.

    Args:
        differences: of M measures for Q queries, [Q, M].
    """
    queries = len(differences)
    total, size = differences.sum(axis=0), np.abs(differences).sum(axis=0)
    sums = []
    for random, rows in _parts(queries):
        bits = np.frombuffer(random.bytes(rows * queries // 8 + 1), np.uint8)
        is_kept = np.unpackbits(bits, count=rows * queries).reshape(rows, queries)
        sums.append(2 * (is_kept.astype(np.float64) @ differences) - total)
    # Sums that differ by rounding only are equal.
    as_far = np.abs(np.concatenate(sums)) >= np.abs(total) - 1e-12 * size
    return ((1 + as_far.sum(axis=0)) / (1 + len(as_far))).tolist()


def t_test(differences: np.ndarray) -> list[float]:
    """Two-sided p-values of the paired t-test; 1 where no query differs or there is only one.

    Args:
        differences: of M measures for Q queries, [Q, M].
    """
    if len(differences) == 1:
        return [1.0] * differences.shape[1]
    with warnings.catch_warnings():
        # Queries that all differ by the same amount have no variance.
        warnings.simplefilter("ignore", RuntimeWarning)
        p_values = scipy.stats.ttest_1samp(differences, 0.0).pvalue
    return np.where(differences.any(axis=0), p_values, 1.0).tolist()


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that any one of them is falsely small as rarely as a single one.

    Holm's step-down method (Scandinavian Journal of Statistics, 1979): the smallest of n is multiplied by n, the next
    by n - 1, and so on; none gets smaller than one before it, or larger than 1.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted.tolist()


def adjusted(comparisons: Sequence[Mapping[str, Difference]]) -> list[dict[str, Difference]]:
    """Comparisons of several pairs of systems, with the p-values of each measure adjusted for their number."""
    results = [dict(comparison) for comparison in comparisons]
    for measure in dict.fromkeys(measure for comparison in comparisons for measure in comparison):
        concerned = [result for result in results if measure in result]
        for test in ("randomization_p", "t_p"):
            p_values = holm([getattr(result[measure], test) for result in concerned])
            for result, p_value in zip(concerned, p_values, strict=True):
                change: dict[str, Any] = {test: p_value}
                result[measure] = dataclasses.replace(result[measure], **change)
    return results


def _parts(queries: int) -> Iterator[tuple[np.random.Generator, int]]:
    """The generator of random numbers, and how many resamples of so many queries to draw with it at once."""
    random = np.random.default_rng(SEED)
    resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, DRAWS // queries))
    rows = max(1, DRAWS_AT_ONCE // queries)
    for start in range(0, resamples, rows):
        yield random, min(rows, resamples - start)
