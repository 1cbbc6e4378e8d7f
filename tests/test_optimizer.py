"""AdamW and its schedule against PyTorch and Hugging Face, whose recipe the published models were trained with."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from retromae_jax.optimizer import adamw, learning_rate_schedule

STEPS = 20


@pytest.mark.parametrize("warmup_fraction, warmup", [(0.0, 0), (0.2, 4), (0.22, 5)])
def test_the_schedule_is_hugging_faces(warmup_fraction, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    ours = learning_rate_schedule(0.5, warmup_fraction, STEPS)
    for step in range(STEPS):
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], abs=1e-7)
        optimizer.step()
        theirs.step()


def test_steps_equal_pytorchs_with_clipping_and_without_decay_of_biases_and_layer_norm():
    generator = np.random.default_rng(0)
    names = ["layer.kernel", "layer.bias", "layer_norm.scale", "layer_norm.bias"]
    start = {name: generator.standard_normal(5).astype(np.float32) for name in names}
    schedule = learning_rate_schedule(0.1, 0.2, STEPS)

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [theirs["layer.kernel"]], "weight_decay": 0.3},
        {"params": [theirs[name] for name in names[1:]], "weight_decay": 0.0},
    ]
    torch_optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    optimizer = adamw(schedule, weight_decay=0.3, clip_norm=1.0)
    state = optimizer.init(ours)
    for step in range(STEPS):
        scale = 10.0 if step % 2 else 0.01  # clipped, and not
        gradients = {name: scale * generator.standard_normal(5).astype(np.float32) for name in names}
        updates, state = optimizer.update({k: jnp.asarray(v) for k, v in gradients.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        for group in torch_optimizer.param_groups:
            group["lr"] = float(schedule(step))
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch_optimizer.step()
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
