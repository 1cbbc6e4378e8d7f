import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax.objectives.distillation import BATCHMEAN, ELEMENTWISE, kl_divergence

STUDENT = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TEACHER = jnp.array([[2.0, 0.0, 1.0], [1.0, 5.0, -2.0]])


def divergences(student, teacher, temperature):
    """Plain definition, one row after the other."""
    p = [np.exp(row) / np.exp(row).sum() for row in np.asarray(teacher, np.float64)]
    q = [np.exp(row) / np.exp(row).sum() for row in np.asarray(student, np.float64) / temperature]
    return [float(np.sum(a * np.log(a / b))) for a, b in zip(p, q, strict=True)]


def test_it_is_the_divergence_of_two_softmaxes_averaged_in_two_ways():
    of_rows = divergences(STUDENT, TEACHER, 0.5)
    assert float(kl_divergence(STUDENT, TEACHER, 0.5, BATCHMEAN)) == pytest.approx(np.mean(of_rows), rel=1e-5)
    assert float(kl_divergence(STUDENT, TEACHER, 0.5, ELEMENTWISE)) == pytest.approx(np.mean(of_rows) / 3, rel=1e-5)
    assert float(kl_divergence(TEACHER, TEACHER * 2, 0.5, BATCHMEAN)) == pytest.approx(0, abs=1e-6)


def test_passages_without_a_score_are_left_out():
    teacher = TEACHER.at[0, 1].set(jnp.nan).at[1].set(jnp.array([7, jnp.nan, jnp.nan]))
    (expected,) = divergences(STUDENT[:1, ::2], TEACHER[:1, ::2], 0.5)
    loss, gradient = jax.value_and_grad(kl_divergence)(STUDENT, teacher, 0.5, BATCHMEAN)
    assert float(loss) == pytest.approx(expected / 2, rel=1e-5)  # one score alone says nothing
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[0, 1], 0)
    np.testing.assert_allclose(gradient[1], 0, atol=1e-7)
