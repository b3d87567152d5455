"""The operations of a traced program."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def equations(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Iterator[Any]:
    """Yield every operation, those inside loops, branches and calls too."""
    body = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    for equation in body.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)
