"""Scores of runs, computed by ir-measures under the names that the field uses.

The mean is over all queries of the qrels (as `trec_eval -c` and MS MARCO's official script take it): a query that the
run lacks, or that has no relevant passage, counts 0, and a query that the qrels lack is ignored.

Ties are broken as `retromae_jax.retrieval.runs` says, which is trec_eval's way. The libraries behind ir-measures do not
agree (trec_eval takes the higher id first, the one that cuts reciprocal ranks the lower), so they are given ranks in
place of scores. MS MARCO's script knows no ties: its files hold ranks.

nDCG uses grades as gains, as trec_eval and BEIR do. The other measures know relevant and not relevant only;
`relevance_level` is the grade where that begins, `trec_eval -l`.
"""

import dataclasses
from collections.abc import Sequence
from statistics import fmean

import ir_measures
import numpy as np

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

    def values(self, measures: Sequence[str]) -> np.ndarray:
        """The queries' values of M measures, float64 [Q, M]."""
        return np.array([[values[measure] for measure in measures] for values in self.per_query.values()])

    def only(self, measures: Sequence[str]) -> "Scores":
        """The scores in these measures alone."""
        per_query = {query: {name: values[name] for name in measures} for query, values in self.per_query.items()}
        return Scores({name: self.means[name] for name in measures}, per_query)


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


def _measure(name: str, relevance_level: int) -> ir_measures.Measure:
    # Not by ir-measures' own parser, which uses what Python 3.12 warns of and 3.14 has no more.
    family, separator, cutoff = name.partition("@")
    try:
        measure = ir_measures.measures.registry[family]
        if separator:
            measure @= measure.SUPPORTED_PARAMS[measure.AT_PARAM].dtype(cutoff)
    except (KeyError, ValueError):
        raise InputError(f"the measure {name!r} is unknown; known are, for example, {', '.join(MEASURES)}") from None
    return measure(rel=relevance_level) if "rel" in measure.SUPPORTED_PARAMS else measure
