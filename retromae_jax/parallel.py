"""Devices: the mesh, shardings, and per-device computation inside a sharded step."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"


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


def per_device(function: Callable, batched: tuple[bool, ...], summed: tuple[bool, ...]) -> Callable:
    """Runs a function on each device's part of the batch, so that the partitioner cannot gather what it makes.

    Without a mesh in context (`jax.set_mesh`), or within one device, this is the function itself.

    Args:
        function: of arrays, returning a tuple of arrays.
        batched: for each argument, whether its first axis is the batch; other arguments are whole on each device.
        summed: for each result, whether it is summed over devices; other results have the batch as first axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or DATA not in mesh.auto_axes:
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
        mesh=mesh,
        in_specs=tuple(map(spec, batched)),
        out_specs=tuple(spec(not is_summed) for is_summed in summed),
    )
