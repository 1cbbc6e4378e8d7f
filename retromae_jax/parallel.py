"""Devices: the mesh, shardings, and per-device work inside a sharded step."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"


def local_rows(rows: int) -> slice:
    """Those of a batch's rows that this process's devices hold."""
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays over all devices from each process's rows (`local_rows`)."""
    return {name: jax.make_array_from_process_local_data(over_batch(mesh), rows) for name, rows in local.items()}


def held_by_all(tree: Any) -> Any:
    """Arrays over the devices of all processes from what `jax.pmap` returns: arrays of each process's own, all equal.

    Arrays that are over all devices already stay as they are. No data move.
    """
    if jax.process_count() == 1:
        return tree
    everywhere = replicated(data_mesh())

    def held(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, parts)

    return jax.tree.map(held, tree)


def full_precision(dtype: jnp.dtype) -> AbstractContextManager:
    """Float32 products in float32: TPUs and GPUs would otherwise round their operands. For tracing."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


def data_mesh() -> Mesh:
    """A mesh of all devices along the `data` axis."""
    return Mesh(np.array(jax.devices()), (DATA,))


def local_mesh() -> Mesh:
    """A mesh of this process's devices along the `data` axis."""
    return Mesh(np.array(jax.local_devices()), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def is_local() -> bool:
    """Whether arrays are one device's own where this is called: in `per_device`, in `jax.pmap`, or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or DATA not in mesh.auto_axes


def per_device(function: Callable, batched: tuple[bool, ...], summed: tuple[bool, ...]) -> Callable:
    """Runs a function on each device's part of the batch, so that the partitioner cannot gather what it makes.

    Without a mesh in context (`jax.set_mesh`), or within one device, this is the function itself.

    Args:
        function: of arrays, returning a tuple of arrays.
        batched: for each argument, whether its first axis is the batch; other arguments are whole on each device.
        summed: for each result, whether it is summed over devices; other results have the batch as first axis.
    """
    if is_local():
        return function

    def on_device(*arguments):
        # A whole argument becomes the device's own copy: its gradient is summed over devices once, at the end.
        own = [
            argument if is_batched else jax.lax.pcast(argument, DATA, to="varying")
            for argument, is_batched in zip(arguments, batched, strict=True)
        ]
        return tuple(
            jax.lax.psum(result, DATA) if is_summed else result
            for result, is_summed in zip(function(*own), summed, strict=True)
        )

    def spec(is_batched: bool) -> PartitionSpec:
        return PartitionSpec(DATA) if is_batched else PartitionSpec()

    return jax.shard_map(
        on_device,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=tuple(map(spec, batched)),
        out_specs=tuple(spec(not is_summed) for is_summed in summed),
    )
