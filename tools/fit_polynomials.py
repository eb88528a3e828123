"""The polynomials of refsd/numba_ops/vecmath.py: `python tools/fit_polynomials.py` prints them.

Weighted least squares in long double on Chebyshev nodes, reweighted until the error is level
(Lawson's algorithm), which is close to the minimax polynomial. Coefficients are rounded to float32
one at a time, the largest first, the others fitted again each time.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 50
NODES = 200


def fit(function, weight, low, high, degree, rounds=25):
    """c_0 .. c_degree of p(t) ~ function(t) on [low, high], with the weighted error level."""
    angles = [mp.pi * (2 * i + 1) / (2 * NODES) for i in range(NODES)]
    t = [(low + high) / 2 + (high - low) / 2 * mp.cos(a) for a in angles]
    values, scale = [function(x) for x in t], [weight(x) for x in t]
    powers = np.array([[float(x) ** k for k in range(degree + 1)] for x in t], dtype=np.longdouble)
    target = np.array([np.longdouble(mp.nstr(v, 30)) for v in values])
    scale = np.array([float(s) for s in scale], dtype=np.longdouble)
    fixed = {}
    for done in range(degree + 1):
        free = [k for k in range(degree + 1) if k not in fixed]
        rest = target - sum(np.longdouble(c) * powers[:, k] for k, c in fixed.items())
        level = np.ones(NODES, dtype=np.longdouble)
        for _ in range(rounds):
            rows = (scale * np.sqrt(level))[:, None] * powers[:, free]
            found = solve(rows, scale * np.sqrt(level) * rest)
            error = np.abs(scale * (powers[:, free] @ found - rest))
            level = level * (error + error.max() * 1e-3)
            level /= level.sum()
        fixed[done] = float(np.float32(found[free.index(done)]))
    found = sum(np.longdouble(c) * powers[:, k] for k, c in fixed.items())
    error = np.abs(scale * (found - target))
    return [fixed[k] for k in range(degree + 1)], float(error.max())


def fit_ratio(function, high, degree, rounds=25):
    """p and q, q_0 = 1, of x p(x^2) / q(x^2) ~ function(x) on [0, high], the relative error level.

    Linear least squares for function q - x p, over function times the q of the round before.
    """
    angles = [mp.pi * (2 * i + 1) / (2 * NODES) for i in range(NODES)]
    x = np.array([np.longdouble(mp.nstr(high / 2 * (1 - mp.cos(a)), 30)) for a in angles])
    target = np.array([np.longdouble(mp.nstr(function(mp.mpf(str(v))), 30)) for v in x])
    powers = (x * x)[:, None] ** np.arange(degree + 1)
    columns = np.concatenate([x[:, None] * powers, -target[:, None] * powers[:, 1:]], axis=1)
    q, found, fixed = np.ones(NODES, np.longdouble), np.zeros(columns.shape[1], np.longdouble), []
    # p_0, q_1, p_1, q_2 and so on
    order = [k for i in range(degree + 1) for k in (i, degree + 1 + i)][:-1]
    for free in (order[i:] for i in range(len(order) + 1)):
        rest, level = target - columns[:, fixed] @ found[fixed], np.ones(NODES, np.longdouble)
        for _ in range(rounds if free else 1):
            scale = np.sqrt(level) / (target * q)
            rows = columns[:, free] * scale[:, None]
            size = abs(rows).max(axis=0)
            if free:
                found[free] = solve(rows / size, rest * scale) / size
            q = 1 + powers[:, 1:] @ found[degree + 1:]
            error = abs(x * (powers @ found[:degree + 1]) / q / target - 1)
            level = level * (error + error.max() * 1e-3)
            level /= level.sum()
        if free:
            found[free[0]] = np.float32(found[free[0]])
            fixed.append(free[0])
    return [float(c) for c in found], float(error.max())


def solve(rows, values):
    """Least squares by Householder in long double (NumPy's own works in double)."""
    a, b = rows.copy(), values.copy()
    n = a.shape[1]
    for k in range(n):
        v = a[k:, k].copy()
        v[0] += np.copysign(np.sqrt((v * v).sum()), v[0])
        v /= np.sqrt((v * v).sum())
        a[k:] -= 2 * np.outer(v, v @ a[k:])
        b[k:] -= 2 * v * (v @ b[k:])
    x = np.zeros(n, dtype=np.longdouble)
    for k in reversed(range(n)):
        x[k] = (b[k] - a[k, k + 1:] @ x[k + 1:]) / a[k, k]
    return x


def show(name, meaning, coefficients, error):
    print(f"# {meaning}; {error:.1e}")
    print(f"{name} = (" + ", ".join(f"{c!r}" for c in coefficients) + ")")


if __name__ == "__main__":
    half = mp.log(2) / 2
    show("EXP", "(e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, error relative to e^r",
         *fit(lambda r: (mp.exp(r) - 1 - r) / r**2 if r else mp.mpf(1) / 2,
              lambda r: r * r / mp.exp(r), -half, half, 4))
    show("ERF", "erf(x) / x - 1 in t = x^2, |x| <= 0.9375, error relative to erf",
         *fit(lambda t: mp.erf(mp.sqrt(t)) / mp.sqrt(t) - 1,
              lambda t: mp.sqrt(t) / mp.erf(mp.sqrt(t)), mp.mpf("1e-12"),
              mp.mpf("0.9375")**2, 7))
    show("ERFC", "-log(erfc(x)) on 0.9375 <= x <= 4, error absolute times erfc",
         *fit(lambda x: -mp.log(mp.erfc(x)), lambda x: mp.erfc(x), mp.mpf("0.9375"), mp.mpf(4), 8))
    show("TANH", "(tanh(x) / x - 1) / x^2 in t = x^2, |x| <= 0.625, relative",
         *fit(lambda t: (mp.tanh(mp.sqrt(t)) / mp.sqrt(t) - 1) / t if t else -mp.mpf(1) / 3,
              lambda t: t * mp.sqrt(t) / mp.tanh(mp.sqrt(t)) if t else 0, mp.mpf("1e-12"),
              mp.mpf("0.625")**2, 4))
    show("EXP2", "(2^r - 1) / r on |r| <= 1/2, error relative to 2^r",
         *fit(lambda r: (mp.mpf(2)**r - 1) / r if r else mp.log(2), lambda r: r / mp.mpf(2)**r,
              -mp.mpf(1) / 2, mp.mpf(1) / 2, 4))
    show("PHI", "(p_0 .. p_5, q_1 .. q_5) of x p(x^2) / q(x^2) ~ erf(x / sqrt 2) / 2, relative",
         *fit_ratio(lambda x: mp.erf(x / mp.sqrt(2)) / 2, mp.mpf("5.6"), 5))
