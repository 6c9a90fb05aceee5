"""Student's t distribution, from the incomplete beta function.

    P(|T| > t) = I_x(df / 2, 1 / 2)        x = df / (df + t^2)

I_x is computed from its continued fraction (DLMF 8.17.22), which converges fast for x < (a + 1) / (a + b + 2), and
otherwise from I_x(a, b) = 1 - I_{1-x}(b, a). Degrees of freedom may be any positive number, as in Satterthwaite's rule.
"""

from __future__ import annotations

import math
from functools import lru_cache

TINY = 1e-300
ACCURACY = 1e-15
TERMS = 10_000


def tail(t: float, df: float) -> float:
    """Return P(|T| > |t|), the two-sided p value; 0 for an infinite t."""
    if math.isinf(t):
        return 0.0
    square = t * t
    return _incomplete_beta(df / (df + square), square / (df + square), df / 2, 0.5)


@lru_cache(maxsize=4096)
def critical(level: float, df: float) -> float:
    """Return the t with P(|T| <= t) = level, such as 4.303 for 0.95 and 2 degrees of freedom."""
    t = 0.0
    while True:  # the tail is convex, so Newton's steps from the left never pass the root
        step = (tail(t, df) - (1 - level)) / (2 * _density(t, df))
        if not step > ACCURACY * t:
            return t
        t += step


def _density(t: float, df: float) -> float:
    logarithm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - (df + 1) / 2 * math.log1p(t * t / df)
    return math.exp(logarithm) / math.sqrt(df * math.pi)


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """Return I_x(a, b); `rest` is 1 - x, passed separately to avoid rounding near either end."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    front = math.exp(logarithm)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Evaluate 1 / (1 + d_1 / (1 + d_2 / (1 + ...))) from the front (Lentz's method)."""
    value = above = 1.0
    below = 0.0
    for term in range(1, TERMS):
        half = term // 2
        if term % 2:
            step = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            step = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        below = 1 / _nonzero(1 + step * below)
        above = _nonzero(1 + step / above)
        value *= above * below
        if abs(above * below - 1) < ACCURACY:
            return 1 / value
    raise ArithmeticError(f"the continued fraction of I_x({a}, {b}) at x = {x} has not converged")


def _nonzero(value: float) -> float:
    return value if abs(value) > TINY else TINY
