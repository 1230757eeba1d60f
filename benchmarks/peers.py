"""Attacks of other libraries behind one call: `craft(net, x, y, eps)` gives adversarial images.

To install them: `pip install -e ".[peers]"`, then `pip install --no-deps adv-lib torchattacks`, whose own requirements
do not install on today's Python (visdom's build wants pkg_resources) or drag others back (requests to 2.25 of 2020).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import WorstCase

Craft = Callable[[nn.Module, Tensor, Tensor, float], Tensor]  # net, x, y, eps -> x_adv
Settings = Callable[[float], dict[str, Any]]  # eps -> arguments of the peer's attack

PACKAGES = {
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    "adv_lib": "adv-lib",
    "torchattacks": "torchattacks",
    "pyautoattack": "pyautoattack",
}
LINES = {
    **dict.fromkeys(("foolbox", "art", "pyautoattack"), 'pip install -e ".[peers]"'),
    **dict.fromkeys(("adv_lib", "torchattacks"), "pip install --no-deps adv-lib torchattacks"),
}
OURS = "robustlit"
AL, ART, AA, FB, TA = "adv_lib", "art", "pyautoattack", "foolbox", "torchattacks"


@dataclass(frozen=True)
class Peer:
    """An attack of another library: `craft(net, x, y, eps)` gives its adversarial images."""

    library: str
    craft: Craft
    variant: str = ""

    @property
    def label(self) -> str:
        """The name in a table."""
        return f"{self.library} {self.variant}".strip()


def installed(library: str) -> bool:
    """Return whether a peer can be imported."""
    return importlib.util.find_spec(library) is not None


def load(library: str) -> Any:
    """Import a peer. adv-lib needs visdom only to draw, and its build fails today: a stub replaces it."""
    if library == AL and "visdom" not in sys.modules and not installed("visdom"):
        stub = types.ModuleType("visdom")
        stub.Visdom = type("Visdom", (), {})  # type: ignore[attr-defined]
        sys.modules["visdom"] = stub
    names = {AL: "adv_lib.attacks", ART: "art.attacks.evasion", FB: "foolbox.attacks"}
    return importlib.import_module(names.get(library, library))


def _settings(given: Settings | dict[str, Any], eps: float) -> dict[str, Any]:
    return given(eps) if callable(given) else given


def foolbox(name: str, settings: Settings | dict[str, Any] | None = None, *, minimal: bool = False) -> Peer:
    """foolbox: a budget attack gets eps; a minimal one returns its nearest adversarial example."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        attack = getattr(load(FB), name)(**_settings(settings or {}, eps))
        model = importlib.import_module("foolbox").PyTorchModel(net, bounds=(0, 1), device=x.device)
        return attack(model, x, y, epsilons=None if minimal else eps)[0 if minimal else 1]

    return Peer(FB, craft)


def art(name: str, settings: Settings | dict[str, Any], *, targeted: bool = False, variant: str = "") -> Peer:
    """Adversarial Robustness Toolbox: numpy in, numpy out."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        load(ART)
        wrapper = importlib.import_module("art.estimators.classification").PyTorchClassifier(
            net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type=x.device.type
        )
        kind = getattr(load(ART), name)
        quiet = {"verbose": False} if "verbose" in kind.attack_params else {}
        attack = kind(wrapper, batch_size=len(x), **quiet, **_settings(settings, eps))
        wanted = (y + 1) % 10 if targeted else y
        return torch.from_numpy(attack.generate(x.cpu().numpy(), wanted.cpu().numpy())).to(x)

    return Peer(ART, craft, variant)


def adv_lib(name: str, settings: Settings | dict[str, Any], variant: str = "") -> Peer:
    """adv-lib: an attack is a function."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return getattr(load(AL), name)(net, x.clone(), y, **_settings(settings, eps)).detach()

    return Peer(AL, craft, variant)


def torchattacks(name: str, settings: Settings | dict[str, Any], variant: str = "") -> Peer:
    """torchattacks: an attack is an object that holds the net."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return getattr(load(TA), name)(net, **_settings(settings, eps))(x, y).detach()

    return Peer(TA, craft, variant)


def auto_attack(name: str, settings: Settings) -> Peer:
    """AutoAttack by Croce and Hein (PyPI's pyautoattack 0.2.0: their code of 2024 but for packaging and logging)."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        modules = {"AutoAttack": "autoattack", "SquareAttack": "square", "FABAttack_PT": "fab_pt"}
        module = importlib.import_module(f"pyautoattack.{modules.get(name, 'autopgd_base')}")
        attack = getattr(module, name)(net, device=x.device, **_settings(settings, eps))
        if name == "AutoAttack":
            return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return attack.perturb(x, y)

    return Peer(AA, craft)


def whole_plan(norm: str) -> Peer:
    """WorstCase without its gates: what it alone breaks, the gates miss."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return WorstCase(eps=eps, norm=norm, control=1.0)(net, x, y, seed=0)

    return Peer(OURS, craft, "whole plan")
