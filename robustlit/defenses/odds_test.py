"""OddsTest: test whether noise moves the logits of an image as it moves those of clean images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from robustlit.checks import check_count, check_share
from robustlit.classifier import default_batch_size
from robustlit.defenses.fitted import Fitted, check_clean, check_finite_logits, frozen, full_precision, subset

NOISES = ("normal", "sign", "uniform")
_LEAST = 20  # clean examples of a predicted class, for the mean and deviation of its pairs


class OddsTest(Fitted):
    """The statistical test of a logit detector, without the net.

    Roth, Kilcher, Hofmann: The odds are odd: a statistical test for detecting adversarial examples, 2019,
    arXiv:1902.04818. With y the predicted class and eta noise, the score of an image x is the largest z-score, over the
    other classes z and the kinds of noise, of

        g(y, z) = mean over eta of [f_z - f_y](x + eta) - [f_z - f_y](x)

    relative to its mean and deviation on clean training images that are predicted y. An image is flagged when its score
    reaches one threshold for all pairs, calibrated on held-out clean images. The 2019 report uses the true class as y
    and the attacker's perturbation as eta, neither of which is known at test time; its threshold of 1.28 for every pair
    flags one clean image in ten per pair, far more than the 1 % that it claims.

    Args:
        false_positive_rate: Share of clean images that may be flagged, in (0, 1). The fitted test keeps the scores of
            the held-out images, so `calibrate`, or loading its state into a test with another rate, changes the rate.
        noises: Kinds of noise: "normal" (deviation `scale`), "sign" (each pixel + or - `scale`), "uniform" (in
            [-scale, scale]).
        scales: Sizes of the noise, pixel units; every kind is used at every size.
        samples: Draws of each kind at each size, an even number: they come in pairs of opposite sign, see `shift`.
        fresh_noise: True draws new noise at every call, as the paper does. False draws once, in `fit`: the test is then
            deterministic.
        examples: Largest number of clean training images to fit on.

    Raises:
        ValueError: An argument is out of range.
    """

    mean: Tensor
    deviation: Tensor
    held_out_scores: Tensor
    noise: Tensor

    def __init__(
        self, false_positive_rate: float = 0.01, noises: Sequence[str] = ("sign",), scales: Sequence[float] = (0.03,),
        samples: int = 4, fresh_noise: bool = True, examples: int = 10_000,
    ) -> None:  # fmt: skip
        super().__init__()
        check_share(false_positive_rate, "false_positive_rate")
        if not noises or any(noise not in NOISES for noise in noises):
            raise ValueError(f"noises must be among {', '.join(NOISES)}, at least one of them, got {list(noises)}")
        if not scales or any(isinstance(s, bool) or not 0 < s < float("inf") for s in scales):
            raise ValueError(f"scales must be positive and finite, at least one, in pixel units, got {list(scales)}")
        check_count(samples, "samples")
        check_count(examples, "examples")
        if samples % 2:
            raise ValueError(f"samples must be even, as noise is drawn in pairs eta and -eta, got {samples}")
        self.false_positive_rate = float(false_positive_rate)
        self.cells = [(noise, float(scale)) for noise in noises for scale in scales]  # G of them
        self.samples, self.fresh_noise, self.examples = samples, fresh_noise, examples
        self.register_buffer("mean", torch.zeros(0))  # (G, K, K), [y, z]
        self.register_buffer("deviation", torch.zeros(0))
        self.register_buffer("held_out_scores", torch.zeros(0))  # (N,), descending
        self.register_buffer("noise", torch.zeros(0))  # (G, samples / 2, ...) with kept noise

    @property
    def threshold(self) -> Tensor:
        """The least score (a scalar tensor) that flags an image."""
        return self.held_out_scores[_rank(self.false_positive_rate, len(self.held_out_scores)) - 1]

    def calibrate(self, rate: float) -> None:
        """Set another false-positive rate; raise a ValueError before `fit` and for one that cannot be calibrated."""
        check_share(rate, "false_positive_rate")
        self._check_fitted()
        _rank(rate, len(self.held_out_scores))
        self.false_positive_rate = float(rate)

    def shift(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """Return the mean of net(x + eta) - net(x) over the noise of each kind and size, (B, G, K).

        Noise comes in pairs, eta and -eta, so that the linear effect, which dominates at small scales, cancels. x + eta
        is not clamped to [0, 1], which would hide gradients and bias the mean.
        """
        shifts, pairs = [], self.samples // 2
        for number, cell in enumerate(self.cells):
            total = torch.zeros_like(logits)
            at_once = max(1, min(pairs, default_batch_size(x.shape) // (2 * len(x))))
            for first in range(0, pairs, at_once):
                eta = self._noise(number, cell, x, first, min(at_once, pairs - first))  # (s, B or 1, ...)
                noisy = torch.cat([x + eta, x - eta]).flatten(0, 1)
                total = total + net(noisy).unflatten(0, (-1, len(x))).sum(0)
            shifts.append(total / self.samples - logits)
        return torch.stack(shifts, 1)

    def excess(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """Return the excess of the score over the threshold (B,), differentiable in `x`: 0 and above is flagged.

        Args:
            net: From images to logits.
            x: Images (B, ...).
            logits: Logits (B, K) of `net` for `x`.

        Raises:
            ValueError: Not fitted.
        """
        self._check_fitted()
        score = self._largest(self.shift(net, x, logits), logits.argmax(1))
        return score - self.threshold.to(score)

    def fit(
        self, net: nn.Module, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0
    ) -> None:
        """Estimate how noise moves the logits of clean images, and calibrate the threshold on others.

        Args:
            net: The classifier; in eval mode meanwhile.
            clean: Images (N, ...) in [0, 1] that the net was trained on, or similar ones, and their classes (N,).
            held_out: Clean images and classes used neither for training nor as `clean`.
            seed: Seed of the noise and of the choice of clean images.

        Raises:
            ValueError: The net is wrong on most of the images (they look adversarial), there are too few of a class, or
                the false-positive rate is too small for the number of held-out images.
        """
        _rank(self.false_positive_rate, len(held_out[0]))
        x, y = subset(clean, self.examples, seed)
        logits = check_clean(net, (x, y), "OddsTest")
        others = check_clean(net, held_out, "OddsTest", "held-out")
        predicted, classes = logits.argmax(1), logits.shape[1]
        counts = predicted.bincount(minlength=classes)
        if counts.min() < _LEAST:
            raise ValueError(
                f"class {int(counts.argmin())} is predicted for {int(counts.min())} of the {len(x)} clean images, but "
                f"the statistics of its class pairs need at least {_LEAST}: give more clean images"
            )
        with torch.random.fork_rng(devices=[p.device for p in net.parameters() if p.is_cuda][:1]):
            torch.manual_seed(seed)
            if not self.fresh_noise:
                shape = (self.samples // 2, *x.shape[1:])
                drawn = [_draw(cell, x.new_empty(shape, device="cpu", dtype=torch.float32)) for cell in self.cells]
                self.noise = torch.stack(drawn).to(self.noise)
            odds = _odds(self._shifts(net, x, logits), predicted)  # (N, G, K)
            groups = [odds[predicted == k] for k in range(classes)]
            self.mean = torch.stack([g.mean(0) for g in groups], 1).to(self.mean)
            self.deviation = torch.stack([g.std(0) for g in groups], 1).clamp_min(1e-12).to(self.deviation)
            shifts = self._shifts(net, held_out[0], others).to(self.mean)
            scores = self._largest(shifts, others.argmax(1).to(shifts.device))
        check_finite_logits(scores.unsqueeze(1), "held-out images under noise", "OddsTest")
        self.held_out_scores = scores.sort(descending=True).values

    def _shifts(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """Return `shift` of many images, (N, G, K), on the CPU."""
        with frozen(net) as device, full_precision(x):
            most = default_batch_size(x.shape)
            parts: Iterator[tuple[Tensor, Tensor]] = zip(x.split(most), logits.split(most), strict=True)
            return torch.cat([self.shift(net, a.to(device), b.to(device)).float().cpu() for a, b in parts])

    def _largest(self, shifts: Tensor, predicted: Tensor) -> Tensor:
        mean, deviation = (b.transpose(0, 1)[predicted] for b in (self.mean, self.deviation))  # (B, G, K)
        z = (_odds(shifts, predicted) - mean.to(shifts)) / deviation.to(shifts)
        own = nn.functional.one_hot(predicted, z.shape[2]).bool().unsqueeze(1)
        return z.masked_fill(own, -float("inf")).flatten(1).amax(1)

    def _noise(self, number: int, cell: tuple[str, float], x: Tensor, first: int, count: int) -> Tensor:
        if self.fresh_noise:
            return _draw(cell, x.new_empty(count, *x.shape))
        kept = self.noise[number, first : first + count]
        if kept.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the noise of this test was drawn for images {tuple(kept.shape[1:])}, got {tuple(x.shape[1:])}; fit "
                "another test on images of that shape, or draw fresh noise (fresh_noise=True)"
            )
        return kept.unsqueeze(1).to(x)

    def _check_fitted(self) -> None:
        if not self.held_out_scores.numel():
            raise ValueError("OddsTest is not fitted: call fit(clean=..., held_out=...) or load a fitted state")

    def extra_repr(self) -> str:
        noise = ", ".join(f"{noise} {scale:g}" for noise, scale in self.cells)
        fresh = "fresh" if self.fresh_noise else "kept"
        return f"false_positive_rate={self.false_positive_rate:g}, {self.samples} {fresh} draws of {noise}"


def _odds(shifts: Tensor, predicted: Tensor) -> Tensor:
    """Return f_z - f_y for each class z and the predicted class y, (B, G, K)."""
    own = predicted.view(-1, 1, 1).expand(-1, shifts.shape[1], 1)
    return shifts - shifts.gather(2, own)


def _draw(cell: tuple[str, float], like: Tensor) -> Tensor:
    """Return noise of one kind and size with the shape, dtype and device of `like`."""
    noise, scale = cell
    if noise == "normal":
        return torch.randn_like(like) * scale
    uniform = torch.rand_like(like) * 2 - 1
    return uniform * scale if noise == "uniform" else torch.where(uniform >= 0, scale, -scale).to(like)


def _rank(rate: float, count: int) -> int:
    """Return the rank, from the largest, of the held-out score that a new clean one exceeds at most at `rate`."""
    rank = int(rate * (count + 1) + 1e-9)
    if rank < 1:
        raise ValueError(
            f"false_positive_rate={rate:g} cannot be calibrated on {count} held-out images: at least "
            f"{int(-(-1 // rate)) - 1} are needed; hold out more, or ask for a rate of at least {1 / (count + 1):.2g}"
        )
    return rank
