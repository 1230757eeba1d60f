"""OddsTest: does noise move the logits of an image as it moves those of clean ones?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from robustlit.defenses.fitted import CHUNK, Fitted, check_clean, full_precision, held_still, some

NOISES = ("normal", "sign", "uniform")
_LEAST = 20  # clean examples of a predicted class, for the mean and deviation of its pairs
_TOO_FEW = (
    "class {y} is predicted for {count} of the {total} clean images, but the statistics of its class pairs need at "
    "least {least}: give more clean images"
)
_RATE = "false_positive_rate must lie in (0, 1), got {rate!r}; 0.01 flags one clean image in a hundred"
_RATE_TOO_SMALL = (
    "false_positive_rate={rate:g} cannot be calibrated on {count} held-out images: at least {least} are needed; "
    "hold out more, or ask for a rate of at least {smallest:.2g}"
)
_UNFITTED = "OddsTest knows no clean data yet: call fit(clean=..., held_out=..., seed=...) or load a fitted state"


class OddsTest(Fitted):
    """The statistical test of a logit detector, without the net: what it has learnt of clean logits under noise.

    Roth, Kilcher, Hofmann: The odds are odd: a statistical test for detecting adversarial examples, 2019,
    arXiv:1902.04818. With y the predicted class and eta noise, the score of an image x is the largest, over the other
    classes z and the kinds of noise, of

        g(y, z) = mean over eta of [f_z - f_y](x + eta) - [f_z - f_y](x), less its mean and over its deviation on
                  clean training images that are predicted y.

    An image is flagged when its score reaches one threshold for all pairs, calibrated on held-out clean images. The
    2019 report differs, and cannot work so: its y is the true class and its eta the attacker's perturbation, neither
    of which is known; its threshold of 1.28 for every pair flags one clean image in ten per pair, over nine pairs far
    more than the 1 % that it claims.

    Args:
        false_positive_rate: share of clean images that may be flagged, in (0, 1). The calibration keeps the scores of
            the held-out images, so a fitted test is set to another rate by `calibrate`, or by loading its state into
            a test that was built with that rate.
        noises: kinds of noise, of "normal" (deviation `scale`), "sign" (each pixel + or - `scale`) and "uniform" (in
            [-scale, scale]).
        scales: sizes of the noise, pixel units; every kind is used at every size.
        samples: draws of each kind at each size, an even number: every second one is the one before with its sign
            turned, see `shift`.
        fresh_noise: True draws anew at every call, as the paper does. False draws once, when fitted, and keeps it:
            the test is then a deterministic function.
        examples: how many clean training images are looked at, at most.

    Raises:
        ValueError: an argument out of range.
    """

    mean: Tensor
    deviation: Tensor
    held_out_scores: Tensor
    noise: Tensor

    def __init__(
        self,
        false_positive_rate: float = 0.01,
        noises: Sequence[str] = ("sign",),
        scales: Sequence[float] = (0.03,),
        samples: int = 4,
        fresh_noise: bool = True,
        examples: int = 10_000,
    ) -> None:
        super().__init__()
        self.false_positive_rate = _check_rate(false_positive_rate)
        if not noises or any(noise not in NOISES for noise in noises):
            raise ValueError(f"noises must be among {', '.join(NOISES)}, at least one of them, got {list(noises)}")
        if not scales or any(isinstance(s, bool) or not 0 < s < float("inf") for s in scales):
            raise ValueError(f"scales must be positive and finite, at least one, in pixel units, got {list(scales)}")
        for name, value in (("samples", samples), ("examples", examples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if samples % 2:
            raise ValueError(f"samples must be even, as noise is drawn in pairs eta and -eta, got {samples}")
        self.cells = [(noise, float(scale)) for noise in noises for scale in scales]  # G of them
        self.samples = samples
        self.fresh_noise = fresh_noise
        self.examples = examples
        self.register_buffer("mean", torch.zeros(0))  # (G, K, K), [y, z]
        self.register_buffer("deviation", torch.zeros(0))
        self.register_buffer("held_out_scores", torch.zeros(0))  # (N,), falling
        self.register_buffer("noise", torch.zeros(0))  # (G, samples / 2, ...) where it is kept

    @property
    def passes(self) -> int:
        """How many forwards of the net a score takes, beside that of the image itself."""
        return len(self.cells) * self.samples

    @property
    def threshold(self) -> Tensor:
        """The score (a scalar tensor) from which on an image is flagged."""
        return self.held_out_scores[_rank(self.false_positive_rate, len(self.held_out_scores)) - 1]

    def calibrate(self, rate: float) -> None:
        """Sets the threshold for another false-positive rate, from the held-out scores of the fit.

        Raises:
            ValueError: not fitted, a rate outside (0, 1) or too small for the number of held-out images.
        """
        rate = _check_rate(rate)
        self._check_fitted()
        _rank(rate, len(self.held_out_scores))
        self.false_positive_rate = rate

    def shift(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """How noise moves the logits on average, (B, G, K): mean of net(x + eta) less net(x), for each kind and size.

        Noise comes in pairs, eta and -eta: what is linear in it cancels, which at small scales would drown the rest.
        x + eta is not cut to [0, 1]: the cut would hide gradients and bias the mean.
        """
        shifts = []
        for number, cell in enumerate(self.cells):
            total = torch.zeros_like(logits)
            pairs = self.samples // 2
            at_once = max(1, min(pairs, CHUNK // (2 * len(x))))
            for first in range(0, pairs, at_once):
                eta = self._noise(number, cell, x, first, min(at_once, pairs - first))  # (s, B or 1, ...)
                noisy = torch.cat([x + eta, x - eta]).flatten(0, 1)
                total = total + net(noisy).unflatten(0, (-1, len(x))).sum(0)
            shifts.append(total / self.samples - logits)
        return torch.stack(shifts, 1)

    def score(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """(B,) the largest z-score of each image; differentiable with respect to `x`.

        Args:
            net: from images to logits.
            x: images (B, ...).
            logits: (B, K), those of `net` for `x`.

        Raises:
            ValueError: not fitted.
        """
        self._check_fitted()
        return self._largest(self.shift(net, x, logits), logits.argmax(1))

    def excess(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """(B,) by how much the score exceeds the threshold: 0 and above is flagged. As `score`."""
        score = self.score(net, x, logits)
        return score - self.threshold.to(score)

    def fit(
        self, net: nn.Module, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0
    ) -> None:
        """Learns how noise moves the logits of clean images, and calibrates the threshold on others.

        Args:
            net: the classifier; held in eval mode meanwhile.
            clean: images (N, ...) in [0, 1] that the net was trained on, or like those, and their classes (N,).
            held_out: clean images and classes that neither the net nor this fit has seen.
            seed: of the noise, and of which clean images are looked at.

        Raises:
            ValueError: the net is wrong on most of the images (they look adversarial), too few of a class, a
                false-positive rate too small for the number of held-out images.
        """
        _rank(self.false_positive_rate, len(held_out[0]))
        x, y = some(clean, self.examples, seed)
        logits = check_clean(net, (x, y), "OddsTest")
        others = check_clean(net, held_out, "OddsTest", "held-out")
        predicted, classes = logits.argmax(1), logits.shape[1]
        counts = predicted.bincount(minlength=classes)
        if counts.min() < _LEAST:
            rarest = int(counts.argmin())
            raise ValueError(_TOO_FEW.format(y=rarest, count=int(counts[rarest]), total=len(x), least=_LEAST))
        with torch.random.fork_rng(devices=_cuda(net)):
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
        self.held_out_scores = scores.sort(descending=True).values

    def _shifts(self, net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """`shift` of many images, (N, G, K), on the CPU."""
        with held_still(net) as device, full_precision(x):
            parts: Iterator[tuple[Tensor, Tensor]] = zip(x.split(CHUNK), logits.split(CHUNK), strict=True)
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
            raise ValueError(_UNFITTED)

    def extra_repr(self) -> str:
        """What is printed of it."""
        noise = ", ".join(f"{noise} {scale:g}" for noise, scale in self.cells)
        fresh = "fresh" if self.fresh_noise else "kept"
        return f"false_positive_rate={self.false_positive_rate:g}, {self.samples} {fresh} draws of {noise}"


def _odds(shifts: Tensor, predicted: Tensor) -> Tensor:
    """(B, G, K): how much each class z gains on the predicted class y, f_z - f_y."""
    own = predicted.view(-1, 1, 1).expand(-1, shifts.shape[1], 1)
    return shifts - shifts.gather(2, own)


def _draw(cell: tuple[str, float], like: Tensor) -> Tensor:
    """Noise of one kind and size in the shape, the dtype and on the device of `like`."""
    noise, scale = cell
    if noise == "normal":
        return torch.randn_like(like) * scale
    uniform = torch.rand_like(like) * 2 - 1
    return uniform * scale if noise == "uniform" else torch.where(uniform >= 0, scale, -scale).to(like)


def _cuda(net: nn.Module) -> list[torch.device]:
    return [p.device for p in net.parameters() if p.is_cuda][:1]


def _check_rate(rate: float) -> float:
    if isinstance(rate, bool) or not 0 < rate < 1:
        raise ValueError(_RATE.format(rate=rate))
    return float(rate)


def _rank(rate: float, count: int) -> int:
    """Which of `count` held-out scores, from the largest, is the threshold: a new one exceeds it at most at `rate`."""
    rank = int(rate * (count + 1) + 1e-9)
    if rank < 1:
        least = int(-(-1 // rate)) - 1
        raise ValueError(_RATE_TOO_SMALL.format(rate=rate, count=count, least=least, smallest=1 / (count + 1)))
    return rank
