"""What accelerators can do at most, and the devices of a machine that one does not have, to compile for."""

import contextlib
import os
from typing import NamedTuple

import jax
import numpy as np

from retromae_jax.errors import InputError, one_line


class Chip(NamedTuple):
    """An accelerator's figures, as its vendor gives them.

    Attributes:
        bfloat16_flops: dense products of bfloat16, FLOP/s.
        memory: bytes.
        memory_bandwidth: bytes/s.
        link_bandwidth: what it can send to other chips over all its links, bytes/s.
        clock: cycles per second of a TPU's cores, from its rate and its matrix units; 0 where none is known.
    """

    bfloat16_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    clock: float = 0.0


_V5E = Chip(197e12, 16 * 2**30, 819e9, 200e9, 1.5e9)
_V5P = Chip(459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9)
_V6E = Chip(918e12, 32 * 2**30, 1640e9, 448e9, 1.75e9)

# By JAX's name of a device's kind.
CHIPS = {
    # Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e": peak compute per chip (bf16), HBM capacity and
    # bandwidth, interchip interconnect bandwidth.
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    # NVIDIA's data sheets: BFLOAT16 Tensor Core without sparsity (a half of what is printed for H100 and H200), memory,
    # NVLink or PCIe (one direction: a half of what is printed).
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 40e9, 1555e9, 32e9),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 80e9, 1935e9, 32e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H100 PCIe": Chip(756e12, 80e9, 2000e9, 64e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
}

# What XLA's compiler for GPUs must know of one, as its GpuTargetConfigProto in text form.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Chips of a TPU v4 are two cores that JAX sees as one device, and come four to a host.
_V4_OPTIONS = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}


def tpu_topology(name: str) -> np.ndarray:
    """The devices of a TPU slice to compile for, on a machine without TPUs.

    Args:
        name: generation and shape of the slice, such as `v5e:16x16` or `v4:2x2x1`.

    Returns:
        Devices that programs can be compiled for and not run on.

    Raises:
        InputError: if the TPU compiler is not installed, or knows no such slice.
    """
    # The compiler looks for TPUs and for Google Cloud's description of them, which takes minutes where there are none.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    remedy = "slices are named like v5e:16x16 or v4:2x2x1, and the compiler comes with: pip install 'libtpu==0.0.42.*'"
    with _environment(quiet):
        return _described(
            f"the TPU slice {name!r}", remedy, "tpu", name, **(_V4_OPTIONS if name.startswith("v4") else {})
        )


def gpu_topology(count: int) -> np.ndarray:
    """H100 GPUs of one host to compile for, on a machine without any; as `tpu_topology`.

    Raises:
        InputError: if JAX's CUDA plugin is not installed.
    """
    remedy = "the compiler comes with: pip install --no-deps 'jax-cuda13-plugin==0.10.2' 'jax-cuda13-pjrt==0.10.2'"
    return _described(f"{count} GPUs", remedy, "cuda", "h100", target_config=_H100, topology=f"1x1x{count}")


def _described(what: str, remedy: str, platform: str, name: str, **options: object) -> np.ndarray:
    """The devices that a compiler knows under a name; where it does not, an InputError with the remedy."""
    from jax.experimental import topologies

    try:
        return np.array(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    # One each for a missing compiler, devices that it does not know, and a platform that JAX does not know.
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{what} cannot be compiled for: {one_line(error)}; {remedy}") from error


def topology(name: str) -> np.ndarray:
    """The devices to compile for: `h100:COUNT` or a TPU slice, see `tpu_topology`."""
    generation, _, shape = name.partition(":")
    if generation == "h100" and shape.isdigit():
        return gpu_topology(int(shape))
    return tpu_topology(name)


@contextlib.contextmanager
def _environment(variables):
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def chip_of(device: jax.Device) -> Chip:
    """The figures of a device's kind.

    Raises:
        InputError: if they are not known.
    """
    if device.device_kind not in CHIPS:
        raise InputError(f"nothing is known of {device.device_kind!r} devices; known are {', '.join(CHIPS)}")
    return CHIPS[device.device_kind]
