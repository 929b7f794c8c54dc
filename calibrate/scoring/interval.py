"""The confidence interval of a rate that was counted."""

from __future__ import annotations

import math

Z_95 = 1.959964  # standard errors of a 95 % interval


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval, each end 0 to 1, of a rate that was observed `count` times of `of`; (0, 1) of none.

    Wilson (1927, "Probable inference, the law of succession, and statistical inference").
    """
    if of == 0:
        return 0.0, 1.0
    rate, z = count / of, Z_95**2 / of
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)
