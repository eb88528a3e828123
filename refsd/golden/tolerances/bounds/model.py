"""What is known of the rounding errors of an op: a few functions, one entry an op.

args are the float64 inputs in order, truth the float64 result, p the precision (u, tiny) in which
the formula is computed. The functions work element by element; docs/tolerances.md derives them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class ErrorModel(NamedTuple):
    """The rounding errors of an op.

    worst(args, options, truth, p): the largest error of refsd's formula, whatever the order of its
    sums. ports: of what ports may compute instead. input_error(args, options, truth, perturbations,
    factor): what inputs that are off by up to so much make: the worst case, second order included,
    or a pair of it and the variance (else worst^2 / 3). variance(args, options, truth, p, factor):
    of the formula's roundings, independent of each other and each of variance u^2 / 3 of what it
    rounds; None for few of them, where chance takes nothing off the worst case. factor is lambda,
    for what is not linear: lambda standard deviations count with what they do, over lambda.

    terms(args, options): the lengths of the op's sums. product: it is one of products, of which
    the mean size of roundings says enough. composed: ports make it of several ops, each of which
    may store its result; ports and variance then take `stored`, the precision of that. convex: a
    mean with weights that add up to 1 whatever goes in.
    """

    worst: Callable[..., Any]
    input_error: Callable[..., Any] | None = None
    variance: Callable[..., Any] | None = None
    terms: Callable[..., tuple[int, ...]] | None = None
    ports: Callable[..., Any] | None = None
    product: bool = False
    composed: bool = False
    convex: bool = False

    @property
    def worst_of_ports(self) -> Callable[..., Any]:
        """The worst case of a port: as refsd's own, unless ports do otherwise."""
        return self.ports or self.worst
