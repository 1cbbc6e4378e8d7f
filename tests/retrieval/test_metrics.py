"""Scores against an independent implementation from the measures' definitions."""

import math
import random

import pytest

from retromae_jax.errors import InputError
from retromae_jax.retrieval import metrics
from retromae_jax.retrieval.metrics import MEASURES, score


def expected(run: dict, qrels: dict, relevance_level: int) -> dict[str, dict[str, float]]:
    values = {}
    for query, grades in qrels.items():
        scores = run.get(query, {})
        by_id = sorted(scores, reverse=True)
        ranked = sorted(by_id, key=lambda passage: scores[passage], reverse=True)
        relevant = {passage for passage, grade in grades.items() if grade >= relevance_level}
        ranks = [rank for rank, passage in enumerate(ranked, 1) if passage in relevant]
        found = {k: sum(rank <= k for rank in ranks) for k in (50, 100, 1000)}
        gains = [max(grades.get(passage, 0), 0) for passage in ranked]
        ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)
        dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(which[:10])) for which in (gains, ideal))
        precisions = [count / rank for count, rank in enumerate(ranks, 1)]
        values[query] = {
            "MRR@10": 1 / ranks[0] if ranks and ranks[0] <= 10 else 0.0,
            **{f"Recall@{k}": found[k] / len(relevant) if relevant else 0.0 for k in found},
            "nDCG@10": dcg / best if best else 0.0,
            "MAP": sum(precisions) / len(relevant) if relevant else 0.0,
        }
    return values


def random_case(seed: int) -> tuple[dict, dict]:
    """Ties, graded and negative judgements, unjudged queries and passages, missing queries, rankings of all lengths."""
    generator = random.Random(seed)
    passages = [f"d{number}" for number in range(300)]
    run, qrels = {}, {}
    for number in range(30):
        if number % 7 != 3:
            depth = generator.choice([0, 1, 5, 9, 60, 300])
            levels = generator.choice([2, 10, 10**6])
            run[f"q{number}"] = {
                passage: float(generator.randrange(levels)) for passage in generator.sample(passages, depth)
            }
        if number % 5 != 4:
            judged = generator.sample(passages, generator.choice([1, 3, 40]))
            qrels[f"q{number}"] = {passage: generator.choice([-1, 0, 1, 1, 2, 3]) for passage in judged}
    return run, qrels


@pytest.mark.parametrize("relevance_level", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_against_definitions(seed, relevance_level, monkeypatch):
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 7)
    run, qrels = random_case(seed)
    scores = score(run, qrels, relevance_level=relevance_level)
    per_query = expected(run, qrels, relevance_level)
    assert list(scores.per_query) == list(qrels)
    for query, values in per_query.items():
        assert scores.per_query[query] == pytest.approx(values, abs=1e-9)
    for name in MEASURES:
        assert scores.means[name] == pytest.approx(sum(v[name] for v in per_query.values()) / len(qrels), abs=1e-9)


def test_tie_is_broken_alike_for_all_measures():
    """`b` stands before `a` at the same score, in the reciprocal rank as in the rest."""
    scores = score({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}})
    assert scores.means["MRR@10"] == scores.means["MAP"] == scores.means["nDCG@10"] == 1.0
    scores = score({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}})
    assert scores.means["MRR@10"] == scores.means["MAP"] == 0.5


def test_known_values():
    run = {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0}, "unjudged": {"a": 1.0}}
    qrels = {"q1": {"b": 2, "c": 1}, "q2": {"b": 1}, "missing": {"a": 1}}
    scores = score(run, qrels)
    assert scores.per_query["q1"]["MRR@10"] == 0.5
    assert scores.per_query["q1"]["MAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.per_query["q1"]["nDCG@10"] == pytest.approx((2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3)))
    assert scores.per_query["q2"] == scores.per_query["missing"] == dict.fromkeys(MEASURES, 0.0)
    assert scores.means["MRR@10"] == pytest.approx(0.5 / 3)
    assert scores.means["Recall@50"] == pytest.approx(1 / 3)


def test_reciprocal_rank_is_cut_at_ten():
    run = {"q": {f"d{number:02}": -float(number) for number in range(20)}}
    assert score(run, {"q": {"d09": 1}}).means["MRR@10"] == pytest.approx(0.1)
    assert score(run, {"q": {"d10": 1}}).means["MRR@10"] == 0.0


def test_chosen_measures_only():
    scores = score({"q": {"a": 1.0}}, {"q": {"a": 1}}, ["Recall@5", "MRR@10"])
    assert scores.means == {"Recall@5": 1.0, "MRR@10": 1.0}


def test_interpolated_precision():
    scores = score(
        {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"b": 1, "x": 1}}, ["IPrec@0.0", "IPrec@0.5", "IPrec@0.6"]
    )
    assert scores.means == {"IPrec@0.0": 0.5, "IPrec@0.5": 0.5, "IPrec@0.6": 0.0}


def test_unknown_measure_and_no_qrels():
    for name in ("accuracy of guesses", "nDCG@", "nDCG@ten"):
        with pytest.raises(InputError, match=f"measure '{name}' is unknown"):
            score({}, {"q": {"a": 1}}, [name])
    with pytest.raises(InputError, match="no qrels"):
        score({}, {})


def test_values_and_a_choice_of_measures():
    scores = score({"q": {"a": 1.0}}, {"q": {"b": 1}, "p": {"a": 1}, "r": {"c": 1}}, ["MAP", "MRR@10", "nDCG@10"])
    scores.per_query["p"]["MRR@10"] = 0.5
    assert scores.values(["MRR@10", "MAP"]).tolist() == [[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]]
    assert scores.only(["MAP"]).means == {"MAP": 0.0}
    assert scores.only(["MAP"]).per_query == {"q": {"MAP": 0.0}, "p": {"MAP": 0.0}, "r": {"MAP": 0.0}}
