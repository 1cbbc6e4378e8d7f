"""Training groups: for each query of a pass one positive and some negatives."""

from collections.abc import Mapping, Sequence

import numpy as np

from retromae_jax.errors import InputError


class TrainingGroups:
    """Draws groups; each is a pure function of the seed, the pass and the query.

    Args:
        positives: for each query, indices of relevant passages to learn from, at least one.
        negatives: for some queries, by index, indices of hard negatives.
        num_passages: passages of the collection; random ones fill what the hard negatives leave empty.
        group_size: passages in a group, G.
        seed: of the draws.
        relevant: for each query, indices of all its relevant passages, none of which is a negative; None takes
            `positives`.

    Raises:
        InputError: if there are too few passages to fill a group.
    """

    def __init__(
        self,
        positives: Sequence[np.ndarray],
        negatives: Mapping[int, np.ndarray],
        num_passages: int,
        group_size: int,
        seed: int,
        relevant: Sequence[np.ndarray] | None = None,
    ):
        self.relevant = positives if relevant is None else relevant
        self.most_relevant = max(map(len, self.relevant))
        if num_passages < group_size + self.most_relevant:
            raise InputError(
                f"group_size {group_size} is too large for a collection of {num_passages} passages "
                f"of which up to {self.most_relevant} are relevant to one query"
            )
        self.positives, self.negatives = positives, negatives
        self.num_passages, self.group_size = num_passages, group_size
        self.seed = seed

    def group(self, query: int, epoch: int) -> np.ndarray:
        """Passage indices, int64 [G], the positive first; no passage twice, no relevant one among the negatives."""
        generator = np.random.default_rng([self.seed, epoch, query])
        positives, relevant = self.positives[query], self.relevant[query]
        group = [int(positives[generator.integers(len(positives))])]
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

    def relevant_to(self, queries: np.ndarray) -> np.ndarray:
        """Indices of all passages that are relevant to queries, int32 [Q, N]; -1 fills up, N is the same for all."""
        indices = np.full((len(queries), self.most_relevant), -1, np.int32)
        for row, query in zip(indices, queries, strict=True):
            row[: len(self.relevant[query])] = self.relevant[query]
        return indices
