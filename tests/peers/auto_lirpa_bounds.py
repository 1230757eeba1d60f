"""Run by a Python that has auto_LiRPA: bounds of the margins of a strided CNN, for test_auto_lirpa.py.

    PYTHON auto_lirpa_bounds.py GIVEN.npz FOUND.npz

GIVEN holds the weights ("net.0.weight", ...), images `x` (B, 1, S, S), classes `y` (B,), and the budget `eps` in `norm`
(inf or 2). FOUND gets the lower bounds (B, K) of the true class's logit minus each other's by `ibp`, `crown_ibp`
and `crown`.
"""

import sys

import numpy as np
import torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from torch import nn

given = dict(np.load(sys.argv[1]))
state = {name[4:]: torch.from_numpy(value) for name, value in given.items() if name.startswith("net.")}
first, second, hidden, classes = (len(state[f"{number}.bias"]) for number in (0, 2, 5, 7))
net = nn.Sequential(
    nn.Conv2d(1, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1), nn.ReLU(), nn.Flatten(),
    nn.Linear(state["5.weight"].shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes),
)  # fmt: skip
net.load_state_dict(state)
x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"])
eps, norm = float(given["eps"]), float(given["norm"])
box = {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)} if norm == np.inf else {"eps": eps}
images = BoundedTensor(x, PerturbationLpNorm(norm=norm, **box))
margins = torch.eye(classes)[y].unsqueeze(1) - torch.eye(classes).unsqueeze(0)  # (B, K, K)
bounded = BoundedModule(net.eval(), x)
found = {}
for name, settings in {
    "ibp": {"IBP": True, "method": None},
    "crown_ibp": {"IBP": True, "method": "backward"},
    "crown": {"IBP": False, "method": "backward"},
}.items():
    with torch.no_grad():
        found[name] = bounded.compute_bounds(x=(images,), C=margins, bound_upper=False, **settings)[0].numpy()
np.savez(sys.argv[2], **found)
