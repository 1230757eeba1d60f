"""A tutorial: measure how robust your own net is, see through a false defense, and train a robust net.

    python docs/tutorial.py          # two minutes on two cores; writes into ./tutorial

Every cell begins with `# %%`: VS Code, PyCharm and Jupytext open this file as a notebook. MNIST comes with robustlit,
so nothing is downloaded.
"""

# %% 1. A net of your own
#
# Any nn.Module from images (B, C, H, W) in [0, 1] to logits (B, K) will do. This one is a tiny timm net that learns
# digits in seconds; TimmNet enlarges the images to the size that the net needs. Normalisation belongs inside the model
# (robustlit.models.Normalize is a layer), so that eps and distances are in pixel units. It is trained in plain PyTorch.
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
# Without a list of attacks, evaluate() runs two that a claim can rest on: WorstCase, an ensemble as strong as
# AutoAttack, at the largest eps of the grid, and NearestL2, which searches for the nearest adversarial example. The net
# is put into eval mode and restored afterwards. An accuracy is a float that also holds its number of images.
x, y, _ = data.tensors("test")
plain = evaluate(net, (x, y), grid={"linf": [0.02, 0.05, 0.1]})
print(f"\n2. a net trained as usual, {plain.n} test images: clean {plain.clean_accuracy:.1%}")
for eps in (0.02, 0.05, 0.1):
    accuracy = plain.worst_case(eps=eps)
    low, high = accuracy.interval
    print(f"   worst case at L-inf {eps:<5g}{accuracy:>7.1%}   (95 %: {low:.1%} to {high:.1%})")
print(f"   half of the images have an adversarial example within L2 {plain.median_distance('nearest_l2'):.2f}")
plain.save(folder / "plain")
save_figure(curves_figure(plain, "linf"), folder / "plain" / "curves_linf")

# %% 3. A false defense
#
# Rounding every pixel to black or white makes the gradient zero, so PGD finds nothing, and the accuracy under attack
# looks excellent. The verdict finds this figure overstated. Each check that fails says what it found and what to try
# next. The default, profile="quick", costs a tenth of the attack and probes few examples; "full" probes more.


class Rounded(torch.nn.Module):
    """The net behind a filter that rounds every pixel."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the rounded images."""
        return self.inner(x.round())


masked = Rounded(net)
attacks = {"pgd": PGD(eps=0.1, steps=20)}
few = x[:50], y[:50]
fooled = evaluate(masked, few, attacks)
print(f"\n3. the same net behind rounding: PGD at L-inf 0.1 leaves {fooled.accuracy(eps=0.1):.1%}. Is that believable?")
found = verdict(fooled, masked, few, attacks, profile="full")
for check in found.failed:
    print(f"   {check.status} {check.number}, {check.name}: {check.finding}")

# The way out is to give attacks something to differentiate. A model with `attack_view` is attacked through it, and
# success is still judged on the model itself; the defenses in robustlit.defenses have theirs. (Rounding does help at a
# small eps, but only because digits are nearly black and white to begin with.)


class HonestlyRounded(Rounded):
    """The same, with the gradient of the identity in place of the gradient of rounding (BPDA)."""

    stochastic = False

    def attack_view(self) -> torch.nn.Module:
        """Return the surrogate that an adaptive attacker differentiates."""
        return torch.nn.Sequential(BPDA(torch.round), self.inner)

    def undefended(self) -> torch.nn.Module:
        """Return the net without the rounding."""
        return self.inner


for eps in (0.1, 0.3, 0.45):
    known = evaluate(HonestlyRounded(net), few, {"pgd": PGD(eps=eps, steps=20)})
    print(f"   PGD through the attack view leaves {known.accuracy(eps=eps):>6.1%} at L-inf {eps:g}")

# %% 4. Train a robust net
#
# PGD adversarial training as a LightningModule: your Trainer, its callbacks and its loggers work as usual. `net=` takes
# any net; a small CNN is quick. On the command line the same is `python train.py recipe=pgd_adv_train eps=0.1`, which
# also attacks the result, draws the curves and logs to W&B.
module = PGDAdversarialClassifier(eps=0.1, net=SmallCNN())
trainer = pl.Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, datamodule=data)
robust_net = module.net
robust = evaluate(robust_net, (x, y), grid={"linf": [0.02, 0.05, 0.1]})
robust.save(folder / "robust")
print(f"\n4. a net trained on PGD examples: clean {robust.clean_accuracy:.1%}")
for eps in (0.02, 0.05, 0.1):
    here, before = robust.worst_case(eps=eps), plain.worst_case(eps=eps)
    print(f"   worst case at L-inf {eps:<5g}{here:>7.1%}   (the net of part 2: {before:.1%})")
print(f"   the median distance to the nearest adversarial example is L2 {robust.median_distance('nearest_l2'):.2f}")
found = verdict(robust, robust_net, (x, y), {"worst_case": WorstCase(eps=0.1)}, profile="full")
print(f"   {found.title}; checks: {found.counts}")
print(f"   {found.caution}")

# %% 5. Compare
#
# Every result was kept, one row per (example, attack, budget), so figures and pages are made from the files and nothing
# is attacked again. On the command line: `robustlit compare tutorial/plain tutorial/robust`, `robustlit figures ...`.
loaded = {name: Evaluation.load(folder / name) for name in ("plain", "robust")}
for file in save_figure(models_figure(loaded, "linf"), folder / "models_linf"):
    print(f"\n5. {file}" if file.suffix == ".png" else f"   {file}")
page = write_page(compare([folder / "plain", folder / "robust"]), folder / "compare.html")
print(f"   {page}: open it in a browser")

# %% Where to go on
#
# docs/attacks.md: which attack for what. docs/defenses.md: the defenses, and the attack that breaks each.
# docs/evaluation.md: what the verdict checks. docs/recipes.md: all of this from the command line, on a GPU or a
# cluster.
