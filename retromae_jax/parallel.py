"""Devices and hosts: start of several processes, the mesh, shardings, and per-device work inside a sharded step."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from retromae_jax import logging
from retromae_jax.errors import InputError

DATA = "data"


def start() -> None:
    """Joins this process with those of the other hosts, if there are any; call it before anything else of JAX.

    JAX finds the processes of TPU pods, SLURM and MPI jobs by itself. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of
    the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment name them.

    Raises:
        InputError: if only some of those are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, processes, process = (os.environ.get(name) for name in names)
    if address and not (processes and process):
        raise InputError(f"{', '.join(names)} must be set together")
    try:
        if address:
            jax.distributed.initialize(address, int(processes), int(process))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
        return  # no cluster: this process is alone
    if jax.process_index() > 0:
        logging.silence()


def is_first_process() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(reason: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def local_rows(rows: int) -> slice:
    """Those of a batch's rows that this process's devices hold."""
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays over all devices from each process's rows (`local_rows`)."""
    return {name: jax.make_array_from_process_local_data(over_batch(mesh), rows) for name, rows in local.items()}


def full_precision(dtype: jnp.dtype) -> AbstractContextManager:
    """Float32 products in float32: TPUs and GPUs would otherwise round their operands. For tracing."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


def data_mesh() -> Mesh:
    """A mesh of all devices along the `data` axis."""
    return Mesh(np.array(jax.devices()), (DATA,))


def local_mesh() -> Mesh:
    """A mesh of this process's devices along the `data` axis."""
    return Mesh(np.array(jax.local_devices()), (DATA,))


def platform(mesh: Mesh) -> str:
    """The kind of the mesh's devices: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


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
