"""Parameters as one flat dictionary: `bert.layers.0.attention.query.kernel` -> array.

Optimizer, checkpoints and Hugging Face conversion all work on this form.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

Parameters = dict[str, jax.Array]
# The same, maybe in host memory.
Arrays = Mapping[str, jax.Array | np.ndarray]


def of(model: nnx.Module) -> Parameters:
    """The parameters of a model, by dotted name."""
    nested = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): value for path, value in traverse_util.flatten_dict(nested).items()}


def bind(graph: nnx.GraphDef, parameters: Parameters) -> Any:
    """The model of structure `graph` with these parameters."""
    paths = {
        tuple(int(key) if key.isdigit() else key for key in name.split(".")): value
        for name, value in parameters.items()
    }
    return nnx.merge(graph, traverse_util.unflatten_dict(paths))


def structure(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Parameters]:
    """The structure of the model that `build` makes, and its parameters' shapes (nothing is computed)."""
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    return nnx.graphdef(model), of(model)


def initialize(
    build: Callable[[nnx.Rngs], nnx.Module], seed: int, shardings: dict[str, jax.sharding.Sharding] | None = None
) -> Parameters:
    """Fresh parameters of the model that `build` makes, with these shardings or on one device."""
    return jax.jit(lambda: of(build(nnx.Rngs(seed))), out_shardings=shardings)()
