"""Floating-point operations of a function, counted in its program and not on the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the operations of the matrix products and convolutions of a function.

    A multiplication and an addition count as two. What else there is costs little beside them.

    Args:
      function: traceable.
      *arguments: arrays, or `jax.ShapeDtypeStruct`s: nothing is computed.

    Returns:
      Operations of one call.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                shape = equation.invars[0].aval.shape
                inner = math.prod(shape[axis] for axis in contracted)
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            case "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                inner = math.prod(kernel) // features
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            case "cond":
                total += max(_of(branch.jaxpr) for branch in equation.params["branches"])
            case name:
                repeats = equation.params.get("length", 1) if name == "scan" else 1
                total += repeats * sum(map(_of, _inside(equation)))
    return total


def _inside(equation: Any) -> list[Any]:
    inner = []
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        jaxpr = equation.params.get(name)
        if jaxpr is not None:
            inner.append(getattr(jaxpr, "jaxpr", jaxpr))
    return inner
