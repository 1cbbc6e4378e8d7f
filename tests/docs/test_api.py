"""The blocks of docs/api.md, run one after the other."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from retromae_jax.data.packing import one_text_a_row
from retromae_jax.models import parameters
from retromae_jax.objectives.masked_lm import MaskedLM
from retromae_jax.rows import Rows
from tests.small import CONFIG, weights_of
from tests.texts import VOCABULARY, filled, random_texts, token_counts

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def names(minilm_directory, tmp_path_factory) -> dict:
    """What the blocks have defined in the end."""
    directory = tmp_path_factory.mktemp("page")
    (directory / "exported").mkdir()
    (directory / "exported" / "demo").symlink_to(minilm_directory)
    defined: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), defined)
    return defined


def test_texts_become_embeddings(names):
    assert names["embeddings"].shape == (3, 384) and names["embeddings"].dtype == np.float32
    assert names["hit"].text in names["passages"] and names["scores"].argmax() == 2


def test_the_loop_trains(names):
    assert int(names["state"].step) == 10
    assert names["losses"][-1] < names["losses"][0] - 1


def test_the_objective_with_equal_weights_in_parts_is_masked_language_modelling(names):
    objective = names["WeightedMaskedLM"](CONFIG, VOCABULARY, token_weights_V=np.full(60, 3, np.float32))
    baseline = MaskedLM(CONFIG, VOCABULARY)
    graph, _ = parameters.structure(baseline.model)
    model = parameters.bind(graph, jax.device_put(weights_of("masked_lm")))
    texts = random_texts(8)
    rows = Rows.of(filled(one_text_a_row(token_counts(texts), 16, row_multiple=1, buckets=1), texts), seed=0)
    parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), rows)
    whole = objective.whole_batch(model, parts)
    loss_of_part = jax.jit(lambda *part: objective.loss(model, *part)[0])
    first, second = (loss_of_part(*jax.tree.map(lambda x, n=n: x[n], (parts, whole))) for n in range(2))
    assert first != second
    np.testing.assert_allclose(first + second, jax.jit(baseline.loss)(model, rows)[0], rtol=1e-6)
