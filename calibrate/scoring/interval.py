"""The confidence interval of a rate that was counted."""

from __future__ import annotations

import math

Z_90, Z_95 = 1.644854, 1.959964  # standard errors of a 90 % and of a 95 % interval


def wilson(count: float, of: float, errors: float = Z_95) -> tuple[float, float]:
    """Return the interval, each end 0 to 1, of a rate that was observed `count` times of `of`; (0, 1) of none.

    errors: half its width in standard errors, by default of a 95 % interval. Wilson (1927, "Probable inference, the law
    of succession, and statistical inference").
    """
    if of == 0:
        return 0.0, 1.0
    rate, z = count / of, errors**2 / of
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)
