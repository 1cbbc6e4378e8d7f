"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from retromae_jax import compiled
from retromae_jax.compiled import Exchange

TEXT = """\
HloModule jit_step, is_scheduled=true

%f (arg: f32[8,4]) -> f32[8,4] {
  %dot.1 = f32[8,1000]{1,0} dot(%arg, %arg)
}

%inner_body.1 (arg: (s32[])) -> (s32[]) {
  %fusion.3 = f32[8,4]{1,0} fusion(%arg), calls=%f, backend_config={"window_config":{"estimated_cycles":"10"}}
}

%body.1 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %while.2 = (s32[]) while(%u), condition=%condition.2, body=%inner_body.1, metadata={op_name="jit(step)/inner"}
  %fusion.1 = f32[8,4]{1,0} fusion(%arg), calls=%f, backend_config={"window_config":{"estimated_cycles":"100"}}
}

%condition.1 (arg: (s32[], f32[8,4])) -> pred[] {
  %compare.1 = pred[] compare(%a, %b), direction=LT
}

ENTRY %main.2 (p: f32[8,4]) -> f32[8,4] {
  %all-reduce.1 = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%x, %y), replica_groups={}
  %all-reduce-start.1 = bf16[100]{0} all-reduce-start(%z)
  %all-gather-start.1 = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%w)
  %all-gather-done.1 = bf16[16]{0} all-gather-done(%all-gather-start.1)
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%condition.1, body=%body.1, metadata={op_name="jit(step)/loss/a"}
  ROOT %fusion.2 = f32[8,4]{1,0} fusion(%g), metadata={op_name="jit(step)/jvp(linear)/dot"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_exchanges_are_counted_by_kind():
    assert compiled.exchanges(TEXT) == {
        "all-reduce": Exchange(2, 40 + 24 + 200),
        "all-gather": Exchange(1, 32),
    }
    assert compiled.exchanges("ENTRY %main (p: f32[2]) -> f32[2] {\n}") == {}


def test_the_largest_array():
    assert compiled.largest_array(TEXT) == (200, "bf16[100]")


@pytest.mark.parametrize(
    "trips, expected",
    [({}, 110), ({"loss": 5}, 550), ({"other": 5}, 110), ({"inner": 3}, 130), ({"loss": 5, "inner": 3}, 650)],
)
def test_cycles_of_a_loop_count_as_often_as_it_runs(trips, expected):
    assert compiled.estimated_cycles(TEXT, trips) == {"rest": expected, "linear": 7}


def test_the_innermost_scope_counts():
    assert compiled.scope('metadata={op_name="jit(step)/transpose(jvp(linear))/cross_entropy/dot"}') == "cross_entropy"
    assert compiled.scope('metadata={op_name="jit(step)/nonlinear/dot"}') == ""
    assert compiled.scope("%fusion.2 = f32[8,4]{1,0} fusion(%g)") == ""


def test_what_a_program_that_does_not_fit_wants():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm."
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (512.5M) exceeds "
        "available HBM (15.75G)."
    )
    assert compiled.wanted_memory(used, 2**30) == 20.25 * 2**30
    assert compiled.wanted_memory(temporaries, 2**30) == 2**30 + 512.5 * 2**20
    assert compiled.wanted_memory("INTERNAL: Mosaic failed", 0) is None


def test_a_program_tells_its_memory_and_operations():
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = jax.jit(lambda x: x @ x).lower(shape).compile()
    assert compiled.memory(program).arguments == 64 * 64 * 4
    assert compiled.memory(program).peak >= 2 * 64 * 64 * 4
    assert compiled.flops(program) == pytest.approx(2 * 64**3, rel=0.01)
