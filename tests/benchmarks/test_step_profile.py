import jax
import jax.numpy as jnp
import pytest

from benchmarks.step_profile import operations, shares


def test_each_moment_is_divided_among_what_runs_in_it():
    events = [("a", 0.0, 4.0), ("b", 2.0, 4.0), ("b", 6.0, 7.0), ("c", 2.0, 3.0)]
    assert shares(events) == pytest.approx({"a": 2 + 1 / 3 + 1 / 2, "b": 1 / 3 + 1 / 2 + 1, "c": 1 / 3})
    assert sum(shares(events).values()) == pytest.approx(4 + 1)


def test_operations_know_their_scope_and_whether_they_are_products():
    @jax.named_scope("attention")
    def attend(x):
        return jnp.sin(x) @ x

    program = jax.jit(lambda x: jnp.exp(attend(x))).lower(jnp.ones((64, 64))).compile().as_text()
    found = operations(program)
    assert ("attention", True) in found.values()
    assert ("attention", False) in found.values()
