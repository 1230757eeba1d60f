"""LogitSVC: scikit-learn's support vector classifier as a differentiable function of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlit.checks import check_positive
from robustlit.defenses.fitted import Fitted, check_finite_logits

if TYPE_CHECKING:
    from sklearn.svm import SVC


class LogitSVC(Fitted):
    """A support vector classifier with an RBF kernel, fitted by scikit-learn and evaluated by PyTorch.

    For every pair of classes i < j there is a function d(i, j) = sum over support vectors of coefficient x kernel,
    plus an intercept, positive for i. A class's score is its number of won pairs plus s / (3 (|s| + 1)), less than
    half a vote, where s is the sum of its signed pair values. `forward` equals scikit-learn's `decision_function` with
    `break_ties=True` up to rounding, and predicts the same classes. The kernel is computed in float64.

    Args:
        penalty: The SVC's C, the cost of a training point on the wrong side.
        gamma: Gamma of the kernel exp(-gamma |a - b|^2), in logit units. None takes scikit-learn's "scale", 1 over the
            number of classes times the variance of the logits.

    Raises:
        ValueError: An argument is out of range.
    """

    support_vectors: Tensor
    coefficients: Tensor
    intercepts: Tensor
    kernel_gamma: Tensor

    def __init__(self, penalty: float = 10.0, gamma: float | None = None) -> None:
        super().__init__()
        check_positive(penalty, "penalty")
        if gamma is not None:
            check_positive(gamma, "gamma")
        self.penalty, self.gamma = penalty, gamma
        self.register_buffer("support_vectors", torch.zeros(0, dtype=torch.float64))  # (V, K)
        self.register_buffer("coefficients", torch.zeros(0, dtype=torch.float64))  # (V, P), P = K (K - 1) / 2 pairs
        self.register_buffer("intercepts", torch.zeros(0, dtype=torch.float64))  # (P,)
        self.register_buffer("kernel_gamma", torch.zeros(0, dtype=torch.float64))  # () once fitted

    def fit(self, logits: Tensor, labels: Tensor) -> SVC:
        """Fit scikit-learn's SVC on logits (N, K) and labels (N,), copy its parameters and return it.

        Raises:
            ValueError: A class has no examples, or logits are not finite.
        """
        from sklearn.svm import SVC

        counts = labels.bincount(minlength=logits.shape[1])
        if not counts.all():
            raise ValueError(f"class {int(counts.argmin())} has no example to fit the SVC on: give more images")
        check_finite_logits(logits, "examples", "the SVC")
        points = logits.double().cpu().numpy()
        variance = float(points.var())
        scale = 1 / (points.shape[1] * variance) if variance else 1.0  # "scale", which a fitted SVC keeps private
        gamma = scale if self.gamma is None else self.gamma
        svc = SVC(C=self.penalty, gamma=gamma, break_ties=True, cache_size=500)
        svc.fit(points, labels.cpu().numpy())
        self.take(svc)
        return svc

    def take(self, svc: SVC) -> None:
        """Copy the parameters of a fitted SVC with an RBF kernel, a gamma given as a number, and classes 0 to K - 1."""
        classes = len(svc.classes_)
        if isinstance(svc.gamma, str):
            raise ValueError(f"the SVC must be built with a number as gamma, got {svc.gamma!r}")
        if svc.kernel != "rbf" or list(svc.classes_) != list(range(classes)):
            raise ValueError(
                f"the SVC must have an RBF kernel and the classes 0 to {classes - 1}, got {svc.kernel!r} and "
                f"{list(svc.classes_)}"
            )
        sign = -1.0 if classes == 2 else 1.0  # scikit-learn flips the signs for two classes
        owner = torch.arange(classes).repeat_interleave(torch.as_tensor(svc.n_support_, dtype=torch.int64))
        dual = sign * torch.as_tensor(svc.dual_coef_, dtype=torch.float64)  # (K - 1, V)
        i, j = torch.triu_indices(classes, classes, 1)
        # The row of a vector's coefficient for a pair is the other class, not counting the vector's own class.
        coefficients = torch.where(owner == i[:, None], dual[j - 1], torch.where(owner == j[:, None], dual[i], 0.0))
        fitted = {
            "support_vectors": torch.as_tensor(svc.support_vectors_),
            "coefficients": coefficients.T.contiguous(),
            "intercepts": sign * torch.as_tensor(svc.intercept_),
            "kernel_gamma": torch.tensor(float(svc.gamma), dtype=torch.float64),
        }
        for name, value in fitted.items():
            setattr(self, name, value.to(getattr(self, name).device, torch.float64))

    def pairs(self, logits: Tensor) -> Tensor:
        """Return d(i, j) of logits (B, K) for every pair i < j, (B, P), float64: scikit-learn's "ovo" values."""
        if not self.support_vectors.numel():
            raise ValueError("LogitSVC is not fitted: call fit(logits, labels) or load a fitted state")
        z, vectors = logits.double(), self.support_vectors.double()
        # Not torch.cdist, whose square has no gradient where the logits equal a support vector.
        square = z.square().sum(1, keepdim=True) + vectors.square().sum(1) - 2 * z @ vectors.T
        kernel = torch.exp(-self.kernel_gamma.double() * square.clamp_min(0))
        return kernel @ self.coefficients.double() + self.intercepts.double()

    def forward(self, logits: Tensor) -> Tensor:
        """Return scores (B, K), float64, whose argmax is scikit-learn's prediction: whole votes and a fraction."""
        pairs = self.pairs(logits)
        return _scores(pairs, (pairs >= 0).to(pairs), logits.shape[1])

    def soft(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the scores with votes sigmoid(d / temperature) in place of whole ones, which have no gradient."""
        pairs = self.pairs(logits)
        return _scores(pairs, torch.sigmoid(pairs / temperature), logits.shape[1])

    def extra_repr(self) -> str:
        gamma = "scale" if self.gamma is None else f"{self.gamma:g}"
        return f"penalty={self.penalty:g}, gamma={gamma}, {len(self.support_vectors)} support vectors"


def _scores(pairs: Tensor, votes: Tensor, classes: int) -> Tensor:
    """Return (B, K) from the pair values (B, P) and each pair's vote (B, P) for its first class."""
    i, j = torch.triu_indices(classes, classes, 1, device=pairs.device)
    zeros = pairs.new_zeros(len(pairs), classes)
    counts = zeros.index_add(1, i, votes).index_add(1, j, 1 - votes)
    total = zeros.index_add(1, i, pairs).index_add(1, j, -pairs)
    return counts + total / (3 * (total.abs() + 1))
