"""Small models of every objective, their compiled training steps, and what is compiled meanwhile."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retromae_jax import parallel
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.training import pretraining_step
from tests.texts import VOCABULARY

# Initial values so large that attention prefers some tokens to others: with BERT's, it would hardly matter which.
CONFIG = BertConfig(60, 8, 2, 2, 16, max_position_embeddings=64, initializer_range=0.3)
# Proportional to the gradients, unlike Adam, which makes small errors of small gradients large.
OPTIMIZER = optax.sgd(0.1)


def objective_of(name, dtype=jnp.float32, remat=False, attention="plain", **settings):
    """A small objective."""
    if "condenser" in name:
        settings = {"head_layers": 1, "skip_from": 1} | settings
    return OBJECTIVES[name](CONFIG, VOCABULARY, Computation(dtype, remat, attention), **settings)


@functools.cache
def weights_of(name):
    """Fresh parameters of a small objective, in host memory: a training step uses up what is on its devices."""
    return jax.device_get(parameters.initialize(objective_of(name).model, seed=0))


def mesh_of(devices, fsdp=1):
    """A mesh of the first devices."""
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(-1, fsdp), (parallel.DATA, parallel.FSDP))


class Step(NamedTuple):
    """A training step of a small objective.

    Attributes:
        mesh: devices that it runs on.
        weights: parameters to start from.
        function: from state and batch to state and metrics.
    """

    mesh: jax.sharding.Mesh
    weights: parameters.Parameters
    function: jax.stages.Wrapped | jax.stages.Compiled

    @classmethod
    def of(cls, name, devices=1, parts=1, dtype=jnp.float32, fsdp=1, remat=False, attention="plain"):
        """The step on the first devices, to be compiled for each shape of batch when it comes."""
        objective = objective_of(name, dtype, remat, attention)
        graph, _ = parameters.structure(objective.model)
        return cls(mesh_of(devices, fsdp), weights_of(name), pretraining_step(objective, graph, OPTIMIZER, 0, parts))

    def compiled(self, batch):
        """The step compiled for one shape of batch: it refuses others, and states that are sharded otherwise."""
        with jax.set_mesh(self.mesh):
            return self._replace(function=self.function.lower(self.state(), self.place(batch)).compile())

    def state(self):
        """The state before the first step."""
        start = TrainState(np.int32(0), self.weights, OPTIMIZER.init(self.weights))
        return jax.device_put(start, parallel.state_sharding(self.mesh, start))

    def place(self, batch):
        """The batch, split over the devices."""
        return jax.device_put(batch, parallel.over_batch(self.mesh))

    def train(self, batches):
        """Metrics of a step on each of the batches, and by how much they moved the parameters."""
        state, measured = self.state(), []
        with jax.set_mesh(self.mesh):
            for batch in batches:
                state, metrics = self.function(state, self.place(batch))
                measured.append(jax.device_get(metrics))
        return measured, {name: np.asarray(state.parameters[name]) - value for name, value in self.weights.items()}


def equations(program):
    """All equations of a traced program, those of its loops and functions included."""
    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@contextlib.contextmanager
def compilations():
    """A list that grows by the name of each program that is compiled, such as `jit(step)`."""
    names = []

    def listen(event, _, fun_name="", **others):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_same(found, expected, tolerance):
    """Metrics, or parameters' movements, are equal up to a share of each array's largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Of a key's bias the gradient is 0 but for rounding: a softmax does not change when all its inputs shift.
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=tolerance * np.max(np.abs(value)) + 1e-7, err_msg=name
        )
