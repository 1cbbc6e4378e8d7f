"""The published objectives' values on fixed inputs."""

import pytest

from tests.golden import BIENCODERS, CASES, GoldenCase


@pytest.fixture(scope="module")
def case(golden_directory):
    return GoldenCase(golden_directory)


def test_encoder_and_head_give_the_stored_states_and_logits(case):
    outputs = case.encoder_outputs()
    assert outputs["last_hidden_state_error"] < 1e-4
    assert outputs["mlm_logits_error"] < 1e-4


@pytest.mark.parametrize("objective", ["retromae", "dupmae", "condenser", "cocondenser"])
def test_losses_and_gradients(case, objective):
    found, expected = getattr(case, objective)(), case.expected[objective]
    losses = [name for name in expected if name.endswith("loss")]
    assert "loss" in losses
    for name in losses:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    # There are stored gradients for RetroMAE and DupMAE.
    assert ("gradients_error" in found) == (objective in ("retromae", "dupmae"))
    assert found.get("gradients_error", 0) < 1e-4


@pytest.mark.parametrize("name", BIENCODERS)
def test_embeddings_contrastive_loss_and_distillation(case, name):
    found, expected = getattr(case, name)(), case.expected[name]
    losses = expected.keys() - {"pooling", "normalized", "temperature"}
    assert losses == {name for name in found if not name.endswith("error")}
    for loss in losses:
        assert found[loss] == pytest.approx(expected[loss], rel=1e-4), loss
    assert found["q_reps_error"] < 1e-4 and found["p_reps_error"] < 1e-4


def test_every_stored_case_is_compared(case):
    assert case.expected.keys() <= set(CASES)
