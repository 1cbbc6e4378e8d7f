"""Devices: the mesh, shardings, and per-device work inside a sharded step."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from retromae_jax.errors import InputError, one_line

DATA, FSDP = "data", "fsdp"
# What says which devices to compute on: a platform (`cpu`, `gpu` or `tpu`), or devices; None is what JAX takes.
Device = str | Sequence[jax.Device] | None

# Matrices of fewer elements, a quarter of a megabyte, stay whole on each device, and so do all vectors: together they
# are a thousandth of BERT-base, and gathering each would take longer to begin than to do.
SMALLEST_SPLIT = 2**16


def local_rows(rows: int) -> slice:
    """Those of a batch's rows that this process's devices hold."""
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays over all devices from each process's rows (`local_rows`)."""
    return {name: jax.make_array_from_process_local_data(over_batch(mesh), rows) for name, rows in local.items()}


def own_part(x: np.ndarray | jax.Array) -> np.ndarray:
    """The rows of a batch's array that this process holds."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    parts = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


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


def training_mesh(fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices, among which each `fsdp` neighbours split parameters and optimizer state between them.

    Args:
        fsdp: divides the number of devices.
        devices: None takes all that there are.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, fsdp), (DATA, FSDP))


def local_mesh(device: Device = None) -> Mesh:
    """A mesh of devices of this process along the `data` axis.

    Raises:
        InputError: if there is no device of the platform.
    """
    if isinstance(device, str):
        try:
            device = jax.local_devices(backend=device)
        except RuntimeError as error:
            raise InputError(f"device {device!r}: {one_line(error)}") from error
    return Mesh(np.array(jax.local_devices() if device is None else device), (DATA,))


def platform(mesh: Mesh) -> str:
    """The kind of the mesh's devices: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def parameter_spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How a parameter of this shape is split over the mesh's `fsdp` axis: along its longest axis that divides.

    It follows from the shape alone, so that the optimizer's moments lie where their parameters do.
    """
    devices = mesh.shape.get(FSDP, 1)
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or len(shape) < 2 or math.prod(shape) < SMALLEST_SPLIT or not divisible:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(divisible, key=lambda axis: shape[axis]), FSDP)


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """The sharding of each array of a training state, or of parts of it."""
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, mesh)), state)


def is_local() -> bool:
    """Whether arrays are one device's own where this is called: in `per_device`, in `jax.pmap`, or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or DATA not in mesh.auto_axes


def splits_parameters() -> bool:
    """Whether parameters are split over devices where this is called."""
    return not is_local() and jax.sharding.get_abstract_mesh().shape.get(FSDP, 1) > 1


def per_device(
    function: Callable, batched: tuple[bool, ...], summed: tuple[bool, ...], dtype: jnp.dtype = jnp.float32
) -> Callable:
    """Runs a function on each device's part of the batch, so that the partitioner cannot gather what it makes.

    Without a mesh in context (`jax.set_mesh`), or within one device, this is the function itself.

    Args:
        function: of arrays, returning a tuple of arrays.
        batched: for each argument, whether its first axis is the batch; other arguments, which are parameters, are
            whole on each device: those that are split over devices are gathered, and their gradients scattered again.
        summed: for each result, whether it is summed over devices; other results have the batch as first axis.
        dtype: that parameters may be rounded to on their way from device to device, because the function casts them.
    """
    if is_local():
        return function
    mesh = jax.sharding.get_abstract_mesh()
    over_all = PartitionSpec(mesh.axis_names)

    def run(*arguments):
        specs = tuple(
            over_all if is_batched else parameter_spec(argument.shape, mesh)
            for argument, is_batched in zip(arguments, batched, strict=True)
        )

        def on_device(*arguments):
            own = [
                argument if is_batched else _whole(argument, spec, dtype)
                for argument, is_batched, spec in zip(arguments, batched, specs, strict=True)
            ]
            return tuple(
                jax.lax.psum(result, mesh.axis_names) if is_summed else result
                for result, is_summed in zip(function(*own), summed, strict=True)
            )

        out_specs = tuple(PartitionSpec() if is_summed else over_all for is_summed in summed)
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=out_specs)(*arguments)

    return run


def _whole(parameter: jax.Array, spec: PartitionSpec, dtype: jnp.dtype) -> jax.Array:
    """The device's own copy of a parameter: its gradient is summed over devices once, at the end."""
    if FSDP in spec:
        return _gathered(tuple(spec).index(FSDP), dtype, jax.lax.pcast(parameter, DATA, to="varying"))
    return jax.lax.pcast(parameter, jax.sharding.get_abstract_mesh().axis_names, to="varying")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(axis, dtype, part):
    # Of the part's dtype again, or the gradient would be summed over devices in the other.
    return jax.lax.all_gather(part.astype(dtype), FSDP, axis=axis, tiled=True).astype(part.dtype)


def _gathered_forward(axis, dtype, part):
    return _gathered(axis, dtype, part), None


def _gathered_backward(axis, dtype, _, gradient):
    return (jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
