"""Accuracies that carry their uncertainty."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The Wilson score interval at 95 % of a proportion (Wilson 1927), which stays honest near 0 and 1.

    Args:
        correct: number of successes, in [0, n].
        n: number of trials, at least 1.

    Returns:
        Lower and upper bound, in [0, 1].
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"a proportion needs n >= 1 and 0 <= correct <= n, got correct={correct}, n={n}")
    p, z2 = correct / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the bound is exactly 0 and 1; rounding must not say otherwise.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


class Accuracy(float):
    """A share of examples, in [0, 1]: a float that remembers how many it was measured on.

    Attributes:
        correct, n: the counts behind it.
        interval: Wilson 95 % interval, (low, high).
    """

    correct: int
    n: int

    def __new__(cls, correct: int, n: int) -> Accuracy:
        """The accuracy `correct / n`."""
        wilson_interval(correct, n)  # checks the counts
        self = super().__new__(cls, correct / n)
        self.correct, self.n = int(correct), int(n)
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """For copies and pickles."""
        return self.correct, self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval, (low, high)."""
        return wilson_interval(self.correct, self.n)

    def __str__(self) -> str:
        """For people: `94.8 % [94.3, 95.2]`."""
        low, high = self.interval
        return f"{100 * self:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
