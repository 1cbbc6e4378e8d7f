"""Fusion of runs: one ranking made of several systems', of words and of meaning say."""

from collections import defaultdict
from collections.abc import Sequence

from retromae_jax.retrieval.runs import Run, ranking

K = 60


def reciprocal_rank_fusion(runs: Sequence[Run], depth: int) -> Run:
    """Reciprocal rank fusion: a passage's score is the sum of 1 / (60 + its rank) over the runs that found it.

    Cormack, Clarke and Buettcher, SIGIR 2009, whose constant it is. Scores of the runs do not matter, only ranks.

    Args:
        runs: query id -> {passage id: score} of each system; a system may lack queries of another.
        depth: how many passages of each ranking count, and how many are kept.
    """
    fused: Run = {}
    for query in dict.fromkeys(query for run in runs for query in run):
        scores: dict[str, float] = defaultdict(float)
        for run in runs:
            for rank, (passage, _) in enumerate(ranking(run.get(query, {}))[:depth], 1):
                scores[passage] += 1 / (K + rank)
        fused[query] = dict(ranking(scores)[:depth])
    return fused
