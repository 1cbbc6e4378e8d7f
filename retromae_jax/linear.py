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
        return run(x, self.kernel[...], self.bias[...])


@jax.custom_vjp
def affine(x: jax.Array, kernel_IxO: jax.Array, bias_O: jax.Array) -> jax.Array:
    """x @ kernel + bias, [..., I] -> [..., O], in the dtype of x; gradients of kernel and bias are float32 sums."""
    return _forward(x, kernel_IxO, bias_O)[0]


def _forward(x, kernel_IxO, bias_O):
    y = product("...I,IO->...O", x, kernel_IxO.astype(x.dtype)) + bias_O
    return y.astype(x.dtype), (x, kernel_IxO, bias_O)


@jax.named_scope("linear")
def _backward(residuals, d_y):
    x, kernel_IxO, bias_O = residuals
    d_x = product("...O,IO->...I", d_y, kernel_IxO.astype(d_y.dtype)).astype(x.dtype)
    d_kernel_IxO, d_bias_O = sums_over_rows(x, d_y)
    return d_x, d_kernel_IxO.astype(kernel_IxO.dtype), d_bias_O.astype(bias_O.dtype)


affine.defvjp(_forward, _backward)


@jax.checkpoint
def _affine_of_split(x, kernel_IxO, bias_O):
    """`affine` with a kernel that is split over devices.

    The backward pass gathers it again: kept until then, the kernels of all layers would be in memory.
    """
    local = parallel.per_device(
        lambda *arguments: (affine(*arguments),), batched=(True, False, False), summed=(False,), dtype=x.dtype
    )
    return local(x, kernel_IxO, bias_O)[0]


def sums_over_rows(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums over all positions of the outer products of x and y and of y, from [..., I] and [..., O].

    Returns:
        Float32 [I, O] and [O].
    """

    def on_cpu(x, y):
        # As products of matrices in row-major order, because a CPU is slow at others and at sums over leading axes.
        x_NxI, y_NxO = (array.reshape(-1, array.shape[-1]) for array in (x, y))
        ones_N = jnp.ones_like(y_NxO[:, 0])
        # The narrower one is transposed: of a wide one, that takes as long as a good part of the product.
        if x_NxI.shape[1] <= y_NxO.shape[1]:
            products_IxO = product("IN,NO->IO", materialized(x_NxI.T), y_NxO)
        else:
            products_IxO = materialized(product("ON,NI->OI", materialized(y_NxO.T), x_NxI)).T
        return products_IxO, product("N,NO->O", ones_N, y_NxO)

    def elsewhere(x, y):
        # The arrays as they are: a TPU would move them about for another shape.
        axes = tuple(range(x.ndim - 1))
        return jnp.tensordot(x, y, (axes, axes), preferred_element_type=jnp.float32), jnp.sum(y, axes, jnp.float32)

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=elsewhere)


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
