"""Training groups: for each query of a pass one positive and some negatives."""

from collections.abc import Mapping, Sequence

import numpy as np

from retromae_jax.errors import InputError


class TrainingGroups:
    """Draws groups; each is a pure function of the seed, the pass and the query.

    Args:
        positives: for each query, indices of its relevant passages, at least one.
        negatives: for some queries, by index, indices of hard negatives.
        num_passages: passages of the collection; random ones fill what the hard negatives leave empty.
        group_size: passages in a group, G.
        seed: of the draws.

    Raises:
        InputError: if there are too few passages to fill a group.
    """

    def __init__(
        self,
        positives: Sequence[Sequence[int]],
        negatives: Mapping[int, Sequence[int]],
        num_passages: int,
        group_size: int,
        seed: int,
    ):
        most = max(len(passages) for passages in positives)
        if num_passages < group_size + most:
            raise InputError(
                f"group_size {group_size} is too large for a collection of {num_passages} passages "
                f"of which up to {most} are relevant to one query"
            )
        self.positives, self.negatives = positives, negatives
        self.num_passages, self.group_size = num_passages, group_size
        self.seed = seed

    def group(self, query: int, epoch: int) -> np.ndarray:
        """Passage indices, int64 [G], the positive first; no passage twice, no relevant one among the negatives."""
        generator = np.random.default_rng([self.seed, epoch, query])
        relevant = self.positives[query]
        group = [int(relevant[generator.integers(len(relevant))])]
        candidates = np.asarray(self.negatives.get(query, ()), np.int64)
        candidates = candidates[~np.isin(candidates, relevant)]
        group += generator.permutation(candidates)[: self.group_size - 1].tolist()
        taken = {*group, *relevant}
        while len(group) < self.group_size:
            passage = int(generator.integers(self.num_passages))
            if passage not in taken:
                taken.add(passage)
                group.append(passage)
        return np.array(group, np.int64)
