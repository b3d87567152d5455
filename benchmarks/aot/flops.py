"""Count the floating-point operations of the matrix products of a traced program.

XLA's cost analysis counts the body of a loop once; here it is multiplied by the number of iterations.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core


def count_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr, while_trip_count: int = 1) -> int:
    """Return the FLOPs of all matrix products, two for a multiply-add; of a switch, those of the largest branch.

    Args:
      jaxpr: of a traced program, for all devices together.
      while_trip_count: assumed iterations of while loops, such as beam search.
    """
    body = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation_flops(equation, while_trip_count) for equation in body.eqns)


def _equation_flops(equation: Any, while_trip_count: int) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * int(np.prod([left[axis] for axis in contracted])) * int(np.prod(equation.outvars[0].aval.shape))
    inner = [count_flops(subjaxpr, while_trip_count) for subjaxpr in _subjaxprs(equation.params)]
    if equation.primitive.name == "cond":
        return max(inner)
    trip_count = {"scan": equation.params.get("length", 1), "while": while_trip_count}.get(equation.primitive.name, 1)
    return trip_count * sum(inner)


def _subjaxprs(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield item
