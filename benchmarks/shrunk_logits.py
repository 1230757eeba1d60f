"""WorstCase on nets that scale their logits by a factor that depends on the image, beside the nets themselves.

    python benchmarks/shrunk_logits.py                           # the built-in nets, test digits
    python benchmarks/shrunk_logits.py --model mine:net --data mine:images --eps 0.0314 --n 100

The factor leaves every prediction as it is, so the net with it is exactly as robust as without. Ascent of the margin
lowers the factor, and leaves the classes as they are. For each net the table shows how many images WorstCase leaves
without its last steps (version 5) and with them (version 6), and, of the images that version 5 leaves, the least and
the median spread of the logits at its best point, as a share of their spread at the image.
"""

from __future__ import annotations

import argparse

import nets
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustlit.attacks import WorstCase
from robustlit.attacks.losses import spread


class Tempered(nn.Module):
    """Multiply the centred logits of a net by exp(strength * mean brightness of the image)."""

    def __init__(self, net: nn.Module, strength: float) -> None:
        super().__init__()
        self.net, self.strength = net, strength

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        logits = logits - logits.mean(1, keepdim=True)
        return logits * (self.strength * x.flatten(1).mean(1, keepdim=True)).exp()


def line(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[str]:
    """Return how many images each attack leaves, and the shares of the spread."""
    former = WorstCase(eps=eps, version=5).run(net, x, y, seed=0)
    latter = WorstCase(eps=eps).run(net, x, y, seed=0)
    with torch.no_grad():
        shares = (spread(net(former.x_adv)) / spread(net(x)))[~former.success]
    left = [str(int((~result.success).sum())) for result in (former, latter)]
    return [*left, *([f"{shares.min():.3f}", f"{shares.median():.3f}"] if len(shares) else ["", ""])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run folder of robustlit, or module:function returning a net")
    parser.add_argument("--data", help="module:function returning images in [0, 1] and classes; else test digits")
    parser.add_argument("--eps", type=float, help="L-inf budget in pixel units; else .3, .1 for undefended nets")
    parser.add_argument("--n", type=int, default=50, help="images")
    given = parser.parse_args()
    x, y = nets.images(given.data, given.n)
    heads = ("net", "eps", "version 5", "version 6", "least spread", "median spread")
    table = Table(*heads, title=f"{given.n} images, torch {torch.__version__}")
    for name in [given.model] if given.model else nets.RECIPES:
        net = nets.given(name) if given.model else nets.built_in(name)
        eps = given.eps or (0.1 if name.startswith("undefended") else 0.3)
        for factor in (0.0, 10 / eps):
            shown = name + (f", times exp({factor:.0f} brightness)" if factor else "")
            table.add_row(shown, f"{eps:.3g}", *line(Tempered(net, factor).eval(), x, y, eps))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
