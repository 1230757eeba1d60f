"""Look for misclassified points inside certified balls, by random points, corners and attacks.

    python benchmarks/soundness.py runs/ibp --eps 0.3
    python benchmarks/soundness.py nets_of_mine:build --images nets_of_mine:images --eps 2/255 --certificate CROWN
    python benchmarks/soundness.py runs/ibp --norm l2 --eps 1

The ball of an image has the radius that the certificate proves for it, up to eps. At least N random points are tried in
each ball, half of them uniform in it and half on its surface (in L-inf: corners), and PGD, APGD and Square with that
radius as their budget. A single misclassified point shows that the certificate is wrong; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys

import nets
import torch
from torch import Tensor, nn

from robustlit import certify
from robustlit.attacks import APGD, PGD, Square
from robustlit.attacks.draws import Draws
from robustlit.experiment.recipes import number
from robustlit.threat import Ball

_BATCH = 2000


def wrong_points(net: nn.Module, x: Tensor, y: Tensor, radius: Tensor, norm: str, count: int) -> int:
    """Return how many of `count` points in the ball of each image, half of them on its surface, have another class."""
    wrong = 0
    for index, (image, label, size) in enumerate(zip(x, y, radius, strict=True)):
        draws = Draws(index, torch.arange(_BATCH))
        ball = Ball(image.expand(_BATCH, *image.shape), size.expand(_BATCH), norm)
        for _ in range(-(-count // (2 * _BATCH))):
            inner = ball.random_point(draws)
            step = inner - ball.x
            outer = ball.project(ball.x + 1000 * step.sign()) if norm == "linf" else ball.surface(step)
            wrong += sum(int((net(points).argmax(1) != label).sum()) for points in (inner, outer))
    return wrong


def main() -> None:
    """Print what was proven and what was tried, and exit with 1 if a certificate was contradicted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a checkpoint, or module:function that returns a net")
    parser.add_argument("--weights", help="a state dict for the function's net")
    parser.add_argument("--images", metavar="MODULE:FUNCTION", help="returns images and classes; default test digits")
    parser.add_argument("--eps", default="0.1", help="the largest budget asked for, such as 0.3 or 8/255")
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--certificate", default="CROWNIBP", choices=("IBP", "CROWNIBP", "CROWN"))
    parser.add_argument("--n", type=int, default=200, metavar="IMAGES")
    parser.add_argument("--points", type=int, default=10_000, metavar="N", help="random points in each ball")
    args = parser.parse_args()
    eps, norm = number(args.eps), args.norm
    net = nets.given(args.model, args.weights).requires_grad_(False)
    x, y = nets.images(args.images, args.n)
    radius = torch.cat(
        [
            getattr(certify, args.certificate)(eps, norm=norm).run(net, *batch).radius
            for batch in zip(x.split(100), y.split(100), strict=True)
        ]
    ).float()
    proven = radius > 0
    if not proven.any():
        sys.exit(f"{args.certificate} proves nothing within {args.eps} of {args.n} images: there is no ball to test")
    x, y, radius = x[proven], y[proven], radius[proven]
    whole = int((radius >= eps).sum())
    print(f"{args.certificate}, {norm}: of {args.n} images {len(x)} have a certified ball, {whole} up to {args.eps}")
    broken = {"random points": wrong_points(net, x, y, radius, norm, args.points)}
    for attack in (PGD(norm=norm), APGD(norm=norm), Square(norm=norm, queries=1000)):
        broken[type(attack).__name__] = int(attack.run(net, x, y, seed=0, eps=radius).success.sum())
    print(f"misclassified: {', '.join(f'{count} by {name}' for name, count in broken.items())}")
    sys.exit(1 if any(broken.values()) else 0)


if __name__ == "__main__":
    main()
