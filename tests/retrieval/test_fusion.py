import pytest

from retromae_jax.retrieval.fusion import reciprocal_rank_fusion
from retromae_jax.retrieval.runs import ranking


def test_scores_are_sums_of_reciprocal_ranks():
    first = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}, "alone": {"z": 1.0}}
    second = {"q": {"c": 0.3, "d": 0.2, "a": 0.1}}
    fused = reciprocal_rank_fusion([first, second], 10)
    assert fused["q"] == pytest.approx({"a": 1 / 61 + 1 / 63, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "d": 1 / 62})
    # Equal scores as in all runs: by descending id.
    assert [passage for passage, _ in ranking(fused["q"])] == ["c", "a", "d", "b"]
    assert fused["alone"] == pytest.approx({"z": 1 / 61})


def test_depth_cuts_rankings_and_result():
    fused = reciprocal_rank_fusion([{"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"c": 3.0, "b": 2.0, "a": 1.0}}], 2)
    assert fused["q"] == pytest.approx({"b": 2 / 62, "c": 1 / 61})
