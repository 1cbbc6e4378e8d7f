"""The published objectives' values on fixed inputs."""

import pytest

from tests.golden import GoldenCase


@pytest.fixture(scope="module")
def case(golden_directory):
    return GoldenCase(golden_directory)


def test_encoder_and_head_give_the_stored_states_and_logits(case):
    outputs = case.encoder_outputs()
    assert outputs["last_hidden_state_error"] < 1e-4
    assert outputs["mlm_logits_error"] < 1e-4


def test_retromae_losses_and_gradients(case):
    found, expected = case.retromae(), case.expected["retromae"]
    for name in ("encoder_loss", "decoder_loss", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    assert found["gradients_error"] < 1e-4
