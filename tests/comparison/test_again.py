"""The command that a page prints composes, by the command line's own rules, the recipe of the run beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pages import body_of, data_of, needs_a_browser, shown

from robustlit.cli.evaluate import _overridden, _parsed, evaluate
from robustlit.comparison import compare, write_page
from robustlit.comparison.again import again
from robustlit.comparison.overrides import UnwritableError, overrides
from robustlit.comparison.runs import read_run
from robustlit.experiment.recipes import read_fractions, recipe_files, recipes_folder, register_recipes, stored
from robustlit.results import Evaluation
from robustlit.training import read_checkpoint
from robustlit.training.checkpoint import pack

Make = Callable[..., Path]
TEN = np.arange(10)


def recipe(*given: str) -> DictConfig:
    """A composed recipe, as training stores it."""
    register_recipes(recipe_files())
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        config = compose("base", overrides=["recipe=standard", *given, "hydra.verbose=false"])
    config.recipe = "standard"
    read_fractions(config)
    return config


def trained(folder: Path, config: DictConfig | None = None) -> Path:
    """The folder of a training run: its recipe, a checkpoint that holds it, and its results."""
    (folder / "checkpoints").mkdir(parents=True)
    config = config or recipe()
    config.name, config.run_dir = folder.name, str(folder)
    OmegaConf.save(OmegaConf.create(stored(config)), folder / "config.yaml")
    torch.save({"state_dict": {}, "robustlit": pack(stored(config))}, folder / "checkpoints" / "best.ckpt")
    results = {"recipe": "standard", "name": folder.name, "data": "MNIST", "parameters": 5, "seconds": {"train": 1.0}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def composed(checkpoint: str, given: Sequence[str]) -> DictConfig:
    """What `robustlit evaluate` composes."""
    config = OmegaConf.create(read_checkpoint(checkpoint)["robustlit"]["config"])
    config.run_dir = config.ckpt_path = None
    found: DictConfig = _overridden(config, list(given))
    read_fractions(found)
    return found


@pytest.fixture
def evaluated(made: Callable[..., Evaluation]) -> Make:
    """Writes the folder of an evaluation of a checkpoint with overrides, as `robustlit evaluate` leaves it."""

    def write(checkpoint: Path, folder: Path, *given: str) -> Path:
        config = composed(str(checkpoint), given)
        config.name, config.run_dir = folder.name, str(folder)
        if "run_id" in config.logger:
            config.logger.run_id, config.logger.job_type = "abc", "eval"
        attacks = dict.fromkeys(config.sweep.attacks, ("linf", (0.1,)))
        made(TEN, TEN, knowledge=tuple(config.sweep.knowledge), attacks=attacks).save(folder / "evaluation")
        OmegaConf.save(OmegaConf.create({**stored(config), "ckpt_path": str(checkpoint)}), folder / "config.yaml")
        results = {"recipe": "standard", "data": "MNIST", "parameters": 5, "seconds": {"evaluate": 1.0}}
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return write


def of_the_evaluation(config: Any) -> dict[str, Any]:
    """A recipe without what is of the one run alone."""
    found = OmegaConf.to_container(OmegaConf.create(config))
    assert isinstance(found, dict)
    for key in ("name", "run_dir", "ckpt_path", "verdict"):
        found.pop(key, None)
    for key in ("name", "group", "job_type", "run_id"):
        found["logger"].pop(key, None)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ((), ""),
        (("data.test_size=50",), "data.test_size=50"),
        (("sweep=worst_case", "data.test_size=50"), "data.test_size=50 sweep=worst_case"),
        (("sweep.grid.linf=[0.05,0.3]",), "'sweep.grid.linf=[0.05,0.3]'"),
        (("sweep.grid={}", "+sweep.grid.l2=[1.0]"), "'+sweep.grid.l2=[1.0]'"),
        (("eps=8/255",), "eps=0.03137254901960784"),
        (("~sweep.attacks.fgsm",), "'~sweep.attacks.fgsm'"),
        (("sweep=nine", "~sweep.attacks.jsma", "sweep.knowledge=[greybox]"), "sweep=nine '~sweep.attacks.jsma'"),
        (("+sweep.attacks.square._target_=robustlit.attacks.Square", "+sweep.attacks.square.eps='${eps}'"), "${eps}"),
        (("+sweep.attacks.far={_target_:robustlit.attacks.PGD,eps:0.5,steps:null,norm:'${norm}'}",), "steps:null"),
        (("data=image_folder", "data.root=\"it's my folder\"", "data.image_size=28"), " data=image_folder "),
        (("data.test_size=0.1", "data.eval_batch_size=100", "trainer.accelerator=cpu"), "trainer.accelerator=cpu"),
        (("logger=none", "seed=3", "norm=l2", "sweep=l2"), "logger=none sweep=l2 seed=3 norm=l2"),
        (("sweep.attacks.pgd.steps=100", "sweep.attacks.pgd.restarts=null"), "sweep.attacks.pgd.restarts=null"),
        (("callbacks.images=null", "++note='null'"), "callbacks.images=null"),
        (("sweep.attacks.pgd.step_size=1e-05", "trainer.deterministic=true"), "step_size=1e-05"),
    ],
)  # fmt: skip
def test_the_command_composes_what_the_run_was_evaluated_by(
    evaluated: Make, tmp_path: Path, given: tuple[str, ...], printed: str
) -> None:
    base = trained(tmp_path / "runs" / "my net")
    folder = evaluated(base, tmp_path / "runs" / "my net-eval", *given)
    found = again(read_run(folder))
    assert found.doubt == ""
    assert found.command is not None
    assert printed in found.command
    words = shlex.split(found.command)
    assert (words[:3], words[-1]) == (["robustlit", "evaluate", str(base)], "--verdict")
    assert bool(words[3:-1]) == bool(given)
    asked = _parsed(words[2:])
    assert asked.checkpoint == str(base)
    there = of_the_evaluation(OmegaConf.load(folder / "config.yaml"))
    assert of_the_evaluation(composed(asked.checkpoint, asked.overrides)) == there


def test_a_training_run_is_attacked_again_as_it_stands(made: Callable[..., Evaluation], tmp_path: Path) -> None:
    config = recipe("data.test_size=30", "sweep=worst_case")
    base = trained(tmp_path / "runs" / "net", config)
    attacks = {"ensemble": ("linf", (0.3,)), "nearest_l2": ("l2", ())}
    made(TEN, TEN, attacks=attacks).save(base / "evaluation")
    assert again(read_run(base)).command == f"robustlit evaluate {base} --verdict"
    assert again(read_run(base)).doubt == ""
    # One that was not attacked would not be judged either.
    bare = trained(tmp_path / "runs" / "bare", recipe("sweep=none"))
    assert again(read_run(bare)).command == f"robustlit evaluate {bare} sweep=worst_case --verdict"


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ((), ""),
        (("--data", "fashion_mnist", "--n", "50"), " data=fashion_mnist data.test_size=50 "),
        (("sweep=nine", "eps=8/255", "~sweep.attacks.jsma"), " sweep=nine '~sweep.attacks.jsma' eps=0.0313"),
        (("norm=l2", "seed=3", "+sweep.grid.l2=[1.0]"), "seed=3"),
    ],
)  # fmt: skip
def test_a_net_of_the_users_is_evaluated_again_by_its_function(
    made: Callable[..., Evaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    printed: str,
) -> None:
    (tmp_path / "a_net_of_mine.py").write_text("import torch\nbuild = torch.nn.Flatten\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    composed_to: list[dict[str, Any]] = []

    def instead(net: object, config: DictConfig, origin: str, *, strict: bool = False) -> int:
        read_fractions(config)
        composed_to.append({**stored(config), "ckpt_path": origin})
        return 0

    monkeypatch.setattr("robustlit.experiment.run.evaluate_own", instead)
    assert evaluate(["--model", "a_net_of_mine:build", *given]) == 0
    folder = tmp_path / "runs" / "mine"
    attacks = dict.fromkeys(composed_to[0]["sweep"]["attacks"], ("linf", (0.1,)))
    made(TEN, TEN, attacks=attacks).save(folder / "evaluation")
    OmegaConf.save(OmegaConf.create(composed_to[0]), folder / "config.yaml")
    found = again(read_run(folder))
    assert found.command is not None
    assert found.command.startswith("robustlit evaluate --model a_net_of_mine:build ")
    assert printed in found.command
    assert "--weights" in found.doubt  # the folder does not know
    assert evaluate(shlex.split(found.command)[2:]) == 0
    first, second = ({k: v for k, v in of_the_evaluation(one).items() if k != "verdict"} for one in composed_to)
    assert first == second


def test_what_cannot_be_known_is_said(evaluated: Make, made: Callable[..., Evaluation], tmp_path: Path) -> None:
    base = trained(tmp_path / "runs" / "net")
    found = evaluated(base, tmp_path / "runs" / "found", "data.test_size=50")
    assert again(read_run(found)).doubt == ""
    lost = evaluated(base, tmp_path / "runs" / "lost", "data.test_size=50")
    config = OmegaConf.load(lost / "config.yaml")
    config.ckpt_path = "runs/gone"
    OmegaConf.save(config, lost / "config.yaml")
    assert again(read_run(lost)).command == "robustlit evaluate runs/gone --verdict"
    assert again(read_run(lost)).doubt.startswith("the run that it attacked is not found")
    other = evaluated(base, tmp_path / "runs" / "other")
    made(TEN, TEN, attacks={"mine": ("linf", (0.1,))}).save(other / "evaluation")
    assert again(read_run(other)).doubt == "its config.yaml names no such attack as mine"
    grey = evaluated(base, tmp_path / "runs" / "grey")
    made(TEN, TEN, attacks={"pgd": ("linf", (0.1,))}, knowledge=("greybox",)).save(grey / "evaluation")
    assert again(read_run(grey)).doubt == "its config.yaml names no such attack as pgd"
    config = OmegaConf.load(base / "config.yaml")
    config.ckpt_path = str(base / "checkpoints" / "last.ckpt")
    OmegaConf.save(config, base / "config.yaml")
    assert again(read_run(found)).doubt.startswith("the training was resumed")
    (base / "config.yaml").write_text("[")
    assert again(read_run(found)).doubt.endswith("cannot be read, so what was set differently is not known")


@pytest.mark.parametrize(
    ("have", "want", "key"),
    [
        ({}, {"sweep": {"attacks": {"my/fgsm": 1}}}, "sweep.attacks.my/fgsm"),
        ({"a": {"b": 1}}, {"a": {"b": 1, "x.y": 2}}, "a.x.y"),
        ({"a": {"b": 1}}, {"a": [1]}, "a"),
        ({}, {"a": [{"null": 1}]}, "a.null"),
    ],
)
def test_what_no_override_can_say_is_not_said_wrong(have: dict[str, Any], want: dict[str, Any], key: str) -> None:
    with pytest.raises(UnwritableError) as caught:
        overrides(have, want)
    assert str(caught.value) == key


def test_values_of_another_kind_are_told_apart() -> None:
    for have, want, said in (
        (None, "null", "'null'"),
        (1, 1.0, "1.0"),
        (True, 1, "1"),
        (1, "1", "'1'"),
        ([1], [], "[]"),
    ):
        assert overrides({"a": have}, {"a": want}) == [f"a={said}"]


def test_a_key_that_no_override_can_name_is_said(evaluated: Make, tmp_path: Path) -> None:
    base = trained(tmp_path / "runs" / "net")
    folder = evaluated(base, tmp_path / "runs" / "odd")
    config = OmegaConf.load(folder / "config.yaml")
    config.sweep.attacks["my/pgd"] = config.sweep.attacks.pgd
    OmegaConf.save(config, folder / "config.yaml")
    found = again(read_run(folder))
    assert found.command == f"robustlit evaluate {base} --verdict"
    assert found.doubt == "sweep.attacks.my/pgd was set differently and cannot be written on a command line"


@needs_a_browser
def test_the_page_prints_the_command_and_the_doubt(evaluated: Make, tmp_path: Path) -> None:
    base = trained(tmp_path / "runs" / "net")
    folder = evaluated(base, tmp_path / "runs" / "net-eval", "data.test_size=50", "~sweep.attacks.bim")
    page = compare([folder])
    command = f"robustlit evaluate {base} data.test_size=50 '~sweep.attacks.bim' --verdict"
    assert (data_of(page)["runs"][0]["again"], data_of(page)["runs"][0]["doubt"]) == (command, "")
    body = body_of(shown(write_page(page, tmp_path / "page.html"))[0])
    assert f"<code>{command}</code>" in body
    assert "may differ" not in body
    (base / "results.json").unlink()
    body = body_of(shown(write_page(compare([folder]), tmp_path / "page.html"))[0])
    assert f"<code>robustlit evaluate {base} --verdict</code>" in body
    assert "(its figures may differ from those here: the run that it attacked is not found" in body
