"""Linear layers whose products take the fast path everywhere, forward and backward.

Operands have the activations' dtype, sums are float32. Left to itself, JAX would differentiate such a product into
products of mixed dtypes, which are several times slower on a CPU and keep gradients of bfloat16 accuracy only.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax import parallel

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Linear(nnx.Module):
    """x @ kernel + bias, with float32 parameters and activations of the input's dtype.

    Args:
        inputs: width of x, I.
        outputs: width of the result, O.
        initializer_range: standard deviation of the kernel's initial values.
        rngs: of initial values.
    """

    def __init__(self, inputs: int, outputs: int, initializer_range: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(initializer_range)(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    @jax.named_scope("linear")
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., O]."""
        run = _affine_of_split if parallel.splits_parameters() else affine
        y = run(x.reshape(-1, x.shape[-1]), self.kernel[...], self.bias[...])
        return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def affine(x_NxI: jax.Array, kernel_IxO: jax.Array, bias_O: jax.Array) -> jax.Array:
    """x @ kernel + bias in the dtype of x; the gradients of kernel and bias have their dtypes."""
    return _forward(x_NxI, kernel_IxO, bias_O)[0]


def _forward(x_NxI, kernel_IxO, bias_O):
    y_NxO = product("NI,IO->NO", x_NxI, kernel_IxO.astype(x_NxI.dtype)) + bias_O
    return y_NxO.astype(x_NxI.dtype), (x_NxI, kernel_IxO, bias_O)


@jax.named_scope("linear")
def _backward(residuals, d_y_NxO):
    x_NxI, kernel_IxO, bias_O = residuals
    d_x_NxI = product("NO,IO->NI", d_y_NxO, kernel_IxO.astype(d_y_NxO.dtype)).astype(x_NxI.dtype)
    d_kernel_IxO = product("IN,NO->IO", transposed(x_NxI), d_y_NxO).astype(kernel_IxO.dtype)
    # As a product, because a CPU is slow at reductions over the leading axis.
    d_bias_O = product("N,NO->O", jnp.ones_like(d_y_NxO[:, 0]), d_y_NxO).astype(bias_O.dtype)
    return d_x_NxI, d_kernel_IxO, d_bias_O


affine.defvjp(_forward, _backward)


@jax.checkpoint
def _affine_of_split(x_NxI, kernel_IxO, bias_O):
    """`affine` with a kernel that is split over devices.

    The backward pass gathers it again: kept until then, the kernels of all layers would be in memory.
    """
    local = parallel.per_device(
        lambda *arguments: (affine(*arguments),), batched=(True, False, False), summed=(False,), dtype=x_NxI.dtype
    )
    return local(x_NxI, kernel_IxO, bias_O)[0]


def transposed(x_NxM: jax.Array) -> jax.Array:
    """The transposed matrix, [M, N], as `materialized`."""
    return materialized(x_NxM.T)


def materialized(x: jax.Array) -> jax.Array:
    """The array itself; on a CPU, if it is a transposed one, as a copy in row-major order.

    There, products of other layouts (such as sums over an operand's leading axis) run at a half to a quarter of the
    speed. The compiler would undo a plain copy; it does not look through a barrier that the array passes flat.
    """
    if not parallel.is_local():
        return x  # a flat array cannot be split over devices as its rows are
    return jax.lax.platform_dependent(
        x, cpu=lambda x: jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape), default=lambda x: x
    )
