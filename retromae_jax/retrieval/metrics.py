"""Scores of runs, computed by ir-measures under the names that the field uses.

The mean is over all queries of the qrels: a query that the run lacks, or that has no relevant passage, counts 0, and
a query that the qrels lack is ignored. Ties are broken as `retromae_jax.retrieval.runs` says. The libraries behind
ir-measures break them differently from one another (trec_eval by descending id, MS MARCO's script by ascending id), so
they are given ranks in place of scores.

nDCG uses grades as gains, as trec_eval and BEIR do.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import ir_measures

from retromae_jax.data.qrels import Qrels
from retromae_jax.errors import InputError
from retromae_jax.logging import Progress
from retromae_jax.retrieval.runs import Run, ranking

MEASURES = ("MRR@10", "Recall@50", "Recall@100", "Recall@1000", "nDCG@10", "MAP")
QUERIES_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a run.

    Attributes:
        means: measure -> mean over the queries of the qrels.
        per_query: query id -> {measure: value}, in the order of the qrels.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]


def score(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES, relevance_level: int = 1) -> Scores:
    """Scores a run.

    Args:
        run: query id -> {passage id: score}.
        qrels: query id -> {passage id: grade}.
        measures: names such as `MRR@10`, `Recall@100`, `nDCG@10`, `MAP`.
        relevance_level: smallest grade that counts as relevant for measures other than nDCG; 2 in TREC's Deep Learning
            tracks.

    Raises:
        InputError: if a measure is unknown or there are no qrels.
    """
    if not qrels:
        raise InputError("there are no qrels to score the run with")
    names = {_measure(name, relevance_level): name for name in measures}
    per_query: dict[str, dict[str, float]] = {query: {} for query in qrels}
    queries = list(qrels)
    # In parts, because the libraries want dictionaries, which are large.
    with Progress("score", len(queries), "queries") as progress:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = queries[start : start + QUERIES_AT_ONCE]
            judged = {query: qrels[query] for query in part}
            retrieved = {
                query: {passage: -rank for rank, (passage, _) in enumerate(ranking(run[query]), 1)}
                for query in part
                if run.get(query)
            }
            for metric in ir_measures.iter_calc(list(names), judged, retrieved):
                per_query[metric.query_id][names[metric.measure]] = float(metric.value)
            progress.update(len(part))
    ordered = {query: {name: values[name] for name in measures} for query, values in per_query.items()}
    means = {name: fmean(values[name] for values in ordered.values()) for name in measures}
    return Scores(means, ordered)


def mean_gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The mean of what queries gain from one system to another, and half of its 95 % confidence interval.

    The interval is the normal approximation of the paired differences' mean, 1.96 standard errors to each side: queries
    are many here, and two systems' values of one query go together.

    Args:
        before, after: a measure's values of the same queries in the same order. One query has no interval (NaN).
    """
    gains = [new - old for old, new in zip(before, after, strict=True)]
    deviation = stdev(gains) if len(gains) > 1 else math.nan
    return fmean(gains), NormalDist().inv_cdf(0.975) * deviation / len(gains) ** 0.5


def _measure(name: str, relevance_level: int) -> ir_measures.Measure:
    # Not by ir-measures' own parser, which uses what Python 3.12 warns of and 3.14 has no more.
    family, separator, cutoff = name.partition("@")
    try:
        measure = ir_measures.measures.registry[family]
        if separator:
            measure @= int(cutoff)
    except (KeyError, ValueError):
        raise InputError(f"the measure {name!r} is unknown; known are, for example, {', '.join(MEASURES)}") from None
    return measure(rel=relevance_level) if "rel" in measure.SUPPORTED_PARAMS else measure
