"""Method, network and training time: of defenses, of evaluations of a trained run, of a user's own network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import data_of, run_of

from robustlit.comparison import compare
from robustlit.comparison.origin import again
from robustlit.comparison.runs import read_run

Make = Callable[..., Path]
FGSM = {"_target_": "robustlit.attacks.FGSM"}
TRAINING = {"objective": {"_target_": "robustlit.objectives.AdversarialTraining", "attack": FGSM}}
TIMM = {"model": {"_target_": "robustlit.models.timm_net", "name": "resnet18"}}
DENOISER = {"_target_": "robustlit.defenses.Denoiser"}
DEFENDED = {"model": {**DENOISER, "net": {"_target_": "robustlit.models.BaseCNN"}}, "defense": DENOISER}


@pytest.mark.parametrize(
    ("config", "method", "net", "base"),
    [
        ({}, "Standard", "SmallCNN", None),
        (TRAINING, "AdversarialTraining (FGSM)", "SmallCNN", None),
        (TIMM, "Standard", "timm_net resnet18", None),
        (DEFENDED, "Standard + Denoiser", "BaseCNN", None),
        # The network was taken from another run, whose method this folder does not name.
        ({**DEFENDED, "base": "runs/fgsm"}, "Denoiser on fgsm", "BaseCNN", "fgsm"),
        ({**DEFENDED, "base": "x/fgsm/checkpoints/best.ckpt"}, "Denoiser on fgsm", "BaseCNN", "fgsm"),
    ],
)  # fmt: skip
def test_method_and_net(make: Make, config: dict[str, Any], method: str, net: str, base: str | None) -> None:
    run = run_of(make("a", config=config))
    assert (run["method"], run["net"], run["base"]) == (method, net, base)


@pytest.mark.parametrize("place", ["runs/trained", "runs/trained/checkpoints/best.ckpt", "{trained}"])
def test_an_evaluation_shows_the_training_time_of_the_run_that_it_attacked(make: Make, place: str) -> None:
    place = place.format(trained=make("trained", results={"seconds": {"train": 77.0, "evaluate": 2.0}}))
    run = run_of(make("found", results={"seconds": {"evaluate": 3.0}}, config={"ckpt_path": place}))
    assert (run["trained"], run["seconds"]) == ("trained", {"train": 77.0, "evaluate": 3.0})


@pytest.mark.parametrize(
    ("results", "place"),
    [
        # Another run of that name.
        ({"recipe": "trades"}, "runs/trained"), ({"parameters": 5}, "runs/trained"), ({"data": None}, "runs/trained"),
        # No run.
        ({}, "runs/nowhere"), ({}, "a\x00b"), ({}, ""), ({}, 3),
    ],
)  # fmt: skip
def test_another_run_is_not_taken_for_the_attacked_one(make: Make, results: dict[str, Any], place: Any) -> None:
    make("trained", results={"seconds": {"train": 77.0}})
    run = run_of(make("lost", results={"seconds": {"evaluate": 3.0}, **results}, config={"ckpt_path": place}))
    assert (run["trained"], run["seconds"]["train"]) == (None, None)


def test_a_resumed_training_run_has_its_own_time(make: Make) -> None:
    make("trained", results={"seconds": {"train": 77.0}})
    run = run_of(make("resumed", config={"ckpt_path": "runs/trained/checkpoints/last.ckpt"}))
    assert (run["trained"], run["seconds"]["train"]) == (None, 10.0)


def test_a_users_own_net_is_not_described_by_the_stored_recipe(make: Make) -> None:
    own = make("own", config={"recipe": "evaluate", "ckpt_path": "my.nets:build", "optimizer": {"lr": 1}})
    values = data_of(compare([make("a", config={"optimizer": {"lr": 2}}), own]))
    run = values["runs"][1]
    assert (run["recipe"], run["method"], run["net"]) == (None, "own net", "my.nets:build")
    values_of = {s["key"]: s["values"] for s in values["settings"]}
    assert values_of["optimizer.lr"] == ["2", "–"]
    assert values_of["ckpt_path"] == ["–", "my.nets:build"]


# The command that attacks and judges it again


@pytest.mark.parametrize(
    ("stored", "added"),
    [
        ("robustlit evaluate runs/x sweep=worst_case '~sweep.attacks.bim'\n", " --verdict"),
        ("robustlit evaluate --model my.nets:build --weights 'my file.pt' eps=8/255", " --verdict"),
        ("/opt/bin/python -m robustlit evaluate runs/x +note=my--verdict", " --verdict"),
        ("robustlit evaluate runs/x --verdict=full eps=8/255", ""),
        ("robustlit evaluate runs/x --strict", ""),
    ],
)
def test_an_evaluation_is_repeated_by_its_stored_command(make: Make, stored: str, added: str) -> None:
    folder = make("x-eval", command=stored, config={"ckpt_path": "runs/x"})
    assert (run_of(folder)["again"], run_of(folder)["note"]) == (stored.strip() + added, "")


@pytest.mark.parametrize("named", ["name=my--verdict", "run_dir='my evaluation'", "resume=auto"])
def test_the_repetition_gets_a_new_folder(make: Make, named: str) -> None:
    folder = make("x-eval", command=f"robustlit evaluate runs/x {named} eps=0.1", config={"ckpt_path": "runs/x"})
    assert run_of(folder)["again"] == "robustlit evaluate runs/x eps=0.1 --verdict"


def test_a_training_run_is_evaluated_by_its_folder(make: Make) -> None:
    folder = make("my net", command="python train.py recipe=standard eps=8/255")
    (folder / "checkpoints").mkdir()
    assert str(again(read_run(folder))) == f"robustlit evaluate '{folder}' --verdict"


@pytest.mark.parametrize(
    ("config", "net"),
    [
        ({"ckpt_path": "runs/my net"}, "'runs/my net'"),
        ({"ckpt_path": "my.nets:build", "recipe": "evaluate"}, "--model my.nets:build"),
    ],
)
def test_an_older_run_does_not_say_how_it_was_evaluated(make: Make, config: dict[str, Any], net: str) -> None:
    found = again(read_run(make("x-eval", config=config)))
    assert found.command == f"robustlit evaluate {net} --verdict"
    assert str(found).startswith(f"{found.command} (the folder does not say how it was evaluated, so the numbers may ")


@pytest.mark.parametrize("command", [None, "python train.py recipe=standard name='a robustlit evaluate run'"])
def test_without_a_checkpoint_there_is_no_command(make: Make, command: str | None) -> None:
    found = again(read_run(make("x", command=command)))
    assert found.command is None
    assert str(found) == "robustlit evaluate CHECKPOINT --verdict"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (b"robustlit evaluate caf\xe9", "robustlit evaluate 'caf�' --verdict"),
        ("robustlit evaluate a\x00\x1b[31m\u202eb\nc", "robustlit evaluate 'a��[31m�b�c' --verdict"),
        ("robustlit evaluate </script><img>", "robustlit evaluate '</script><img>' --verdict"),
        ("robustlit evaluate " + 9000 * "x", "robustlit evaluate '" + 3979 * "x" + "…"),
        ("", None),
    ],
    ids=["not UTF-8", "control characters", "markup", "long", "empty"],
)
def test_a_hostile_command_is_shown_as_text(make: Make, command: str | bytes, shown: str | None) -> None:
    assert run_of(make("x", command=command))["again"] == shown
