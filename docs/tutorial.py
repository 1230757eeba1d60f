"""A tutorial: how robust is a net of your own, which defenses are none, and how to train a net that stands.

    python docs/tutorial.py          # two minutes on two cores; writes into ./tutorial

Every cell begins with `# %%`: VS Code, PyCharm and Jupytext open this file as a notebook. MNIST comes with robustlit,
so nothing is downloaded.
"""

# %% 1. A net of your own
#
# Any nn.Module will do that takes images (B, C, H, W) in [0, 1] to logits (B, K). Here it is one of timm's, a tiny
# one that learns digits in seconds; TimmNet enlarges the images to what the net can take. Normalisation belongs
# inside the model (robustlit.models.Normalize is a layer), so that eps and distances are in pixels. It is trained in
# plain PyTorch.
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from robustlit import Evaluation, evaluate
from robustlit.attacks import BPDA, PGD, WorstCase
from robustlit.comparison import compare, write_page
from robustlit.data import MNIST
from robustlit.figures import curves_figure, models_figure, save_figure
from robustlit.models import SmallCNN, TimmNet
from robustlit.training import PGDAdversarialClassifier
from robustlit.verdict import verdict

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|is zero at every pixel).*")
torch.manual_seed(0)
folder = Path("tutorial")

data = MNIST(train_size=12_000, test_size=100)
x_train, y_train, _ = data.tensors("train")
net = TimmNet("test_convnext")
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for picked in torch.randperm(len(x_train)).split(100):
    optimizer.zero_grad()
    F.cross_entropy(net(x_train[picked]), y_train[picked]).backward()
    optimizer.step()

# %% 2. How robust is it? Ten lines
#
# Without a list of attacks, evaluate() takes what a claim can rest on: WorstCase, an ensemble as strong as
# AutoAttack, at the largest eps of the grid, and NearestL2, which looks for the nearest adversarial image of each
# example. Which mode the net is in is taken care of. An accuracy is a float that knows how many images it rests on.
x, y, _ = data.tensors("test")
plain = evaluate(net, (x, y), grid={"linf": [0.02, 0.05, 0.1]})
print(f"\n2. a net trained as usual, {plain.n} test images: clean {plain.clean_accuracy:.1%}")
for eps in (0.02, 0.05, 0.1):
    accuracy = plain.worst_case(eps=eps)
    low, high = accuracy.interval
    print(f"   worst case at L-inf {eps:<5g}{accuracy:>7.1%}   (95 %: {low:.1%} to {high:.1%})")
print(f"   half of the images have an adversarial one within L2 {plain.median_distance('nearest_l2'):.2f}")
plain.save(folder / "plain")
save_figure(curves_figure(plain, "linf"), folder / "plain" / "curves_linf")

# %% 3. A defense that is none
#
# Rounding every pixel to black or white makes the gradient zero, so PGD finds nothing, and the accuracy under attack
# looks wonderful. The verdict knows that look. Each check that fails says what it saw and what to try next. The
# default, profile="quick", costs a tenth of the attack and looks at as few examples; "full" looks at all of them, and
# longer.


class Rounded(torch.nn.Module):
    """The net behind a filter that rounds every pixel."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the rounded images."""
        return self.inner(x.round())


masked = Rounded(net)
attacks = {"pgd": PGD(eps=0.1, steps=20)}
few = x[:50], y[:50]
fooled = evaluate(masked, few, attacks)
print(f"\n3. the same net behind rounding: PGD at L-inf 0.1 leaves {fooled.accuracy(eps=0.1):.1%}. To be believed?")
found = verdict(fooled, masked, few, attacks, profile="full")
for check in found.failed:
    print(f"   {check.status} {check.number}, {check.name}: {check.finding}")

# The way out is to tell attackers what to differentiate. A model with `attack_view` is attacked through it, and
# success is still judged on the model itself; robustlit.defenses has the known defenses with theirs. (What rounding
# really gains at a small eps is no robust feature: digits are nearly black and white to begin with.)


class HonestlyRounded(Rounded):
    """The same, with the gradient of the identity in place of the rounding's (BPDA)."""

    stochastic = False

    def attack_view(self) -> torch.nn.Module:
        """What an attacker who knows of the rounding differentiates."""
        return torch.nn.Sequential(BPDA(torch.round), self.inner)

    def undefended(self) -> torch.nn.Module:
        """The net without the rounding."""
        return self.inner


for eps in (0.1, 0.3, 0.45):
    known = evaluate(HonestlyRounded(net), few, {"pgd": PGD(eps=eps, steps=20)})
    print(f"   PGD that knows of the rounding leaves {known.accuracy(eps=eps):>6.1%} at L-inf {eps:g}")

# %% 4. Train one that stands
#
# PGD adversarial training as a LightningModule, so that a Trainer of yours, its callbacks and its loggers go on
# working. `net=` takes any net; a small CNN is quick. On the command line it is `python train.py recipe=pgd_adv_train
# eps=0.1`, which also attacks the result, draws it and logs it to W&B.
module = PGDAdversarialClassifier(eps=0.1, net=SmallCNN())
trainer = pl.Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, datamodule=data)
robust_net = module.net
robust = evaluate(robust_net, (x, y), grid={"linf": [0.02, 0.05, 0.1]})
robust.save(folder / "robust")
print(f"\n4. a net trained on PGD's images: clean {robust.clean_accuracy:.1%}")
for eps in (0.02, 0.05, 0.1):
    here, before = robust.worst_case(eps=eps), plain.worst_case(eps=eps)
    print(f"   worst case at L-inf {eps:<5g}{here:>7.1%}   (the net of part 2: {before:.1%})")
print(f"   the median nearest adversarial image lies at L2 {robust.median_distance('nearest_l2'):.2f}")
found = verdict(robust, robust_net, (x, y), {"worst_case": WorstCase(eps=0.1)}, profile="full")
print(f"   verdict: {found.status}, {found.counts}")
print(f"   {found.caution}")

# %% 5. Compare
#
# Everything was kept, one row per (example, attack, budget), so figures and pages are made from the files, with no
# attack run again. On the command line: `robustlit compare tutorial/plain tutorial/robust`, `robustlit figures ...`.
loaded = {name: Evaluation.load(folder / name) for name in ("plain", "robust")}
for file in save_figure(models_figure(loaded, "linf"), folder / "models_linf"):
    print(f"\n5. {file}" if file.suffix == ".png" else f"   {file}")
page = write_page(compare([folder / "plain", folder / "robust"]), folder / "compare.html")
print(f"   {page}: open it in a browser")

# %% Where to go on
#
# docs/attacks.md: which attack for what. docs/defenses.md: which defenses stand, and which attack breaks the others.
# docs/evaluation.md: what the verdict checks. docs/recipes.md: all of this from the command line, on a GPU or a
# cluster.
