"""Accuracies with their confidence intervals."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the Wilson score interval at 95 % of a proportion (Wilson 1927), which is sound near 0 and 1.

    Args:
        correct, n: Numbers of successes, in [0, n], and of trials, at least 1.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"a proportion needs n >= 1 and 0 <= correct <= n, got correct={correct}, n={n}")
    p, z2 = correct / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the bound is exactly 0 and 1, which rounding would miss.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


class Accuracy(float):
    """A share of examples in [0, 1]: the float `correct / n` with its counts."""

    correct: int
    n: int

    def __new__(cls, correct: int, n: int) -> Accuracy:
        wilson_interval(correct, n)  # checks the counts
        self = super().__new__(cls, correct / n)
        self.correct, self.n = int(correct), int(n)
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return self.correct, self.n  # for copies and pickles

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval, (low, high)."""
        return wilson_interval(self.correct, self.n)

    def __str__(self) -> str:
        """Return the percentage and its interval: `94.80 % [94.30, 95.20]`."""
        low, high = self.interval
        return f"{100 * self:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
