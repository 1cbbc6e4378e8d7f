"""AdamW as the published recipes use it."""

import math

import optax

from retromae_jax.models.parameters import Parameters


def learning_rate_schedule(peak: float, warmup_fraction: float, num_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the first steps, then linear to 0 at `num_steps`.

    The warm-up is rounded up to whole steps, as by Hugging Face's trainer.
    """
    warmup = math.ceil(num_steps * warmup_fraction)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(warmup, 1)),
            optax.linear_schedule(peak, 0.0, max(num_steps - warmup, 1)),
        ],
        [warmup],
    )


def adamw(schedule: optax.Schedule, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """AdamW with the gradient's global norm clipped; biases and LayerNorm are not decayed."""

    def decayed(parameters: Parameters) -> dict[str, bool]:
        return {name: not name.endswith(".bias") and "layer_norm" not in name for name in parameters}

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=decayed),
    )
