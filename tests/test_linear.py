"""The linear layer against what jax derives by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax.models.linear import Dense, matmul


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(7,), (2, 5), (2, 3, 4), ()])
def test_gradients_are_those_of_the_product(rows, dtype):
    generator = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(generator.normal(size=shape), dtype)
        for shape in ((*rows, 6), (6, 3), (*rows, 3))
    )

    def gradients(product):
        return jax.jit(jax.grad(lambda x, kernel: (product(x, kernel) * weight).sum(), (0, 1)))(
            x, kernel
        )

    assert matmul(x, kernel).dtype == dtype
    np.testing.assert_array_equal(matmul(x, kernel), x @ kernel)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    for ours, theirs in zip(gradients(matmul), gradients(jnp.matmul), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(
            np.float64(ours), np.float64(theirs), rtol=tolerance, atol=tolerance
        )


def test_dense_computes_in_its_dtype_and_keeps_float32_parameters():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    module = Dense(5, jax.nn.initializers.normal(1.0), "bfloat16")
    variables = module.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    bias = np.arange(5, dtype=np.float32)
    y = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert (y.dtype, kernel.dtype, kernel.shape) == ("bfloat16", "float32", (4, 5))
    np.testing.assert_allclose(np.float64(y), x @ kernel + bias, rtol=2e-2, atol=5e-2)
