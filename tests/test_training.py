"""Training steps as pretraining uses them: compiled when the first batch of a shape comes, then never again."""

import numpy as np
import pytest

from retromae_jax.data.packing import RowMaker
from tests.small import Step, compilations
from tests.texts import CLS, PAD, SEP, random_texts


@pytest.mark.parametrize("texts_a_row", [4, pytest.param(1, marks=pytest.mark.long)])
def test_each_shape_of_batch_is_compiled_once(texts_a_row):
    """Whatever texts come, in two shapes, from the host to eight devices and with the state that a step left there."""
    maker = RowMaker(64, texts_a_row, 2, batch_size=32, row_multiple=8, cls_id=CLS, sep_id=SEP, pad_id=PAD)
    batches = []
    for number in range(12):
        texts = random_texts(32, (3, 20 if number % 3 else 60), seed=number)
        layout = maker.layout(texts)
        batches.append(maker.rows(layout, texts, np.arange(32) + 32 * number, slice(0, layout.rows)))
    shapes = {batch["token_ids"].shape for batch in batches}
    assert len(shapes) == 2
    with compilations() as names:
        Step.of("masked_lm", devices=8).train(batches)
    assert names.count("jit(step)") == 2
