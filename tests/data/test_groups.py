import numpy as np
import pytest

from retromae_jax.data.groups import TrainingGroups
from retromae_jax.errors import InputError


def groups(**changes):
    settings = {
        "positives": [[0, 1], [2], [3]],
        "negatives": {0: [10, 0, 11, 12], 1: [20]},
        "num_passages": 40,
        "group_size": 4,
        "seed": 0,
    }
    return TrainingGroups(**settings | changes)


def test_positive_first_then_hard_negatives_then_random_passages():
    firsts = set()
    for epoch in range(50):
        hard, filled, random = (groups().group(query, epoch) for query in range(3))
        firsts.add(int(hard[0]))
        assert set(hard[1:]) == {10, 11, 12}  # 0 is relevant
        assert filled[0] == 2 and filled[1] == 20
        assert random[0] == 3
        for group in (hard, filled, random):
            assert len(set(group)) == 4
        assert 2 not in filled[1:] and 3 not in random[1:]
    assert firsts == {0, 1}


def test_a_group_is_a_function_of_seed_epoch_and_query():
    first, again = groups(), groups()
    order = [(query, epoch) for epoch in range(5) for query in range(3)]
    drawn = [first.group(*pair) for pair in order]
    for pair, group in reversed(list(zip(order, drawn, strict=True))):
        np.testing.assert_array_equal(again.group(*pair), group)
    assert any(not np.array_equal(groups(seed=1).group(*pair), group) for pair, group in zip(order, drawn, strict=True))


def test_a_relevant_passage_that_is_not_learned_from_is_no_negative():
    few = groups(positives=[[0], [2], [3]], relevant=[[0, 11], [2], [3]], num_passages=14, negatives={0: [10, 11, 12]})
    for epoch in range(20):
        group = few.group(0, epoch)
        assert group[0] == 0 and set(group) >= {10, 12} and 11 not in group
    np.testing.assert_array_equal(few.relevant_to([2, 0]), [[3, -1], [0, 11]])
    assert few.relevant_to([2]).shape == (1, 2)  # the same width for all queries


def test_a_group_of_one_is_the_positive():
    assert groups(group_size=1).group(1, 0).tolist() == [2]


def test_too_small_a_collection_is_refused():
    with pytest.raises(InputError, match="group_size 4 is too large for a collection of 5 passages"):
        groups(num_passages=5)
