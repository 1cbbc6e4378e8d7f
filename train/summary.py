"""What a training is about to do, for its user to read before the first step."""

from collections.abc import Mapping

import jax

from retromae_jax.checkpoints.train_state import TrainState


def summary(
    mesh: jax.sharding.Mesh,
    state: TrainState,
    num_steps: int,
    batch: Mapping[str, int],
    facts: Mapping[str, str],
    flops: float = 0.0,
    flops_per_second: float = 0.0,
) -> str:
    """Lines of a name and a value each.

    Args:
        mesh: the devices.
        state: before the first step.
        num_steps: finished steps at the end.
        batch: what a batch has how many of, over all devices.
        facts: what else there is to say.
        flops: model FLOPs of a step, if they are known.
        flops_per_second: what all devices can do at most.
    """
    device, processes = jax.local_devices()[0], jax.process_count()
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    # CPUs do not tell.
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    values = {
        "devices": f"{mesh.size} x {device.device_kind}"
        + (f", {mesh.size // processes} on each of {processes} processes" if processes > 1 else ""),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{sum(x.size for x in state.parameters.values()):,}",
        "memory": f"{_size(held)} a device for parameters and optimizer state"
        + (f", of {_size(limit)}" if limit else ""),
        "batch": ", ".join(f"{count:,} {unit} ({count // mesh.size:,} a device)" for unit, count in batch.items()),
        **facts,
        "steps": f"{num_steps:,}" + (f", from step {int(state.step):,} on" if int(state.step) else ""),
    }
    if flops:
        values["model FLOPs"] = (
            f"{flops / 1e9:,.1f} GFLOP a step; the devices do up to {flops_per_second / 1e9:,.0f} GFLOP/s"
        )
    width = max(map(len, values))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in values.items())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
