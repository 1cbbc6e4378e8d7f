import jax
import numpy as np

from retromae_jax import parallel
from retromae_jax.checkpoints.train_state import TrainState
from train.summary import summary


def test_it_says_what_runs_where_and_fits_a_terminal():
    mesh = parallel.data_mesh()
    weights = {"bert.a": np.zeros((1000, 300), np.float32), "bert.b": np.zeros(24, np.float32)}
    state = TrainState(np.int32(7), weights, {"mean": weights, "variance": weights})
    state = jax.device_put(state, parallel.replicated(mesh))
    batch = {"queries": 16, "passages": 128}
    lines = summary(mesh, state, 20, batch, {"data": "much"}, 2.5e12, 8e13).splitlines()
    assert {line[:15].strip(): line[15:] for line in lines} == {
        "devices": "8 x cpu",
        "mesh": "data 8",
        "parameters": "300,024",
        "memory": "3.6 MB a device for parameters and optimizer state",  # three arrays of 4 bytes for each
        "batch": "16 queries (2 a device), 128 passages (16 a device)",
        "data": "much",
        "steps": "20, from step 7 on",
        "model FLOPs": "2,500.0 GFLOP a step; the devices do up to 80,000 GFLOP/s",
    }
    assert max(map(len, lines)) <= 100


def test_memory_is_a_devices_own_share_of_a_split_state():
    mesh = parallel.data_mesh()
    state = TrainState(
        jax.device_put(np.int32(0), parallel.replicated(mesh)),
        {"bert.a": jax.device_put(np.zeros((8000, 250), np.float32), parallel.over_batch(mesh))},
        {},
    )
    assert "  1.0 MB a device" in summary(mesh, state, 20, {"texts": 8}, {})
