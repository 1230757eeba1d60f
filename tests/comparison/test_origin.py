"""Method, net and training time: of defenses, of evaluations of a trained run, of a user's own net."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import data_of

from robustlit.comparison import compare

Make = Callable[..., Path]
FGSM = {"_target_": "robustlit.attacks.FGSM"}
TRAINING = {"objective": {"_target_": "robustlit.objectives.AdversarialTraining", "attack": FGSM}}
TIMM = {"model": {"_target_": "robustlit.models.timm_net", "name": "resnet18"}}
DENOISER = {"_target_": "robustlit.defenses.Denoiser"}
DEFENDED = {"model": {**DENOISER, "net": {"_target_": "robustlit.models.BaseCNN"}}, "defense": DENOISER}


def told(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = data_of(compare([folder]))["runs"][0]
    return run


@pytest.mark.parametrize(
    ("config", "method", "net", "base"),
    [
        ({}, "Standard", "SmallCNN", None),
        (TRAINING, "AdversarialTraining (FGSM)", "SmallCNN", None),
        (TIMM, "Standard", "timm_net resnet18", None),
        (DEFENDED, "Standard + Denoiser", "BaseCNN", None),
        # The net was taken from another run, whose method this folder does not know.
        ({**DEFENDED, "base": "runs/fgsm"}, "Denoiser on fgsm", "BaseCNN", "fgsm"),
        ({**DEFENDED, "base": "x/fgsm/checkpoints/best.ckpt"}, "Denoiser on fgsm", "BaseCNN", "fgsm"),
    ],
)  # fmt: skip
def test_method_and_net(make: Make, config: dict[str, Any], method: str, net: str, base: str | None) -> None:
    run = told(make("a", config=config))
    assert (run["method"], run["net"], run["base"]) == (method, net, base)


def test_an_evaluation_tells_the_training_of_the_run_that_it_attacked(make: Make) -> None:
    trained = make("trained", results={"seconds": {"train": 77.0, "evaluate": 2.0}})
    only = {"seconds": {"evaluate": 3.0}}
    places = ("runs/trained", "runs/trained/checkpoints/best.ckpt", str(trained))
    found = [make(f"found{k}", results=only, config={"ckpt_path": place}) for k, place in enumerate(places)]
    # Another run of that name is not taken for it, nor a training run that was resumed for an evaluation.
    others = ({"recipe": "trades"}, {"parameters": 5}, {"seed": 1, "n": None, "data": None})
    lost = [
        make(f"other{k}", results={**only, **other}, config={"ckpt_path": "runs/trained"})
        for k, other in enumerate(others)
    ]
    lost += [
        make(f"lost{k}", results=only, config={"ckpt_path": place})
        for k, place in enumerate(("runs/nowhere", "a\x00b", "", 3))
    ]
    resumed = make("resumed", config={"ckpt_path": "runs/trained/checkpoints/last.ckpt"})
    runs = data_of(compare([*found, *lost, resumed]))["runs"]
    for run, place in zip(runs, places, strict=False):
        assert (run["trained"], run["seconds"]) == ("trained", {"train": 77.0, "evaluate": 3.0})
        assert run["again"] == f"robustlit evaluate {place} --verdict"
    for run in runs[len(found) : -1]:
        assert (run["trained"], run["seconds"]["train"]) == (None, None)
    assert (runs[-1]["trained"], runs[-1]["seconds"]["train"]) == (None, 10.0)


def test_a_users_own_net_is_not_taken_for_the_stored_recipes(make: Make) -> None:
    own = make("own", config={"recipe": "evaluate", "ckpt_path": "my.nets:build", "optimizer": {"lr": 1}})
    values = data_of(compare([make("a", config={"optimizer": {"lr": 2}}), own]))
    run = values["runs"][1]
    assert (run["recipe"], run["method"], run["net"]) == (None, "own net", "my.nets:build")
    assert run["again"].startswith("robustlit evaluate --model my.nets:build ")
    values_of = {s["key"]: s["values"] for s in values["settings"]}
    assert values_of["optimizer.lr"] == ["2", "–"]
    assert values_of["ckpt_path"] == ["–", "my.nets:build"]


def test_nothing_heavy_is_loaded_to_compare(make: Make) -> None:
    a, b = make("a"), make("b", seed=1)
    script = (
        "import sys; from robustlit.comparison import compare; compare(sys.argv[1:]); "
        "print([m for m in ('torch', 'sklearn', 'pytorch_lightning', 'matplotlib', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(a), str(b)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
