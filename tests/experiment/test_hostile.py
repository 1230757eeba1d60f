"""Checkpoints and recipes of a stranger: nothing that they name runs, nothing is written where they please."""

import os
import re
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from robustlit.data.pictures import usable_cores
from robustlit.experiment.composition import composed, group_file, overridden
from robustlit.experiment.recipes import (
    ConfigError,
    check_name,
    chosen_eps,
    recipe_files,
    recipes_folder,
    register_recipes,
    stored,
)
from robustlit.experiment.stored_recipe import ALLOWED, sanitized_recipe
from robustlit.models import SmallCNN
from robustlit.training import CheckpointError, load_classifier
from robustlit.training.checkpoint import pack
from robustlit.training.stored import NETS, check_names, checked_recipe, plain_values

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.faults
SMALL = ["recipe=standard", "model=small_cnn", "logger=none", "sweep=linf", "eps=0.1", "sweep.grid.linf=[]",
         "data.test_size=20", "~sweep.attacks.bim", "~sweep.attacks.pgd", "callbacks.images=null"]  # fmt: skip
PLANT = "{_target_: os.mkdir, _args_: [PLANTED]}"


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    """The recipe that a training run stores."""
    register_recipes(recipe_files())
    shape = {"num_classes": 10, "in_chans": 1, "image_size": 28}
    recipe = stored(composed(SMALL))
    return {**recipe, "recipe": "standard", "name": "standard", "run_dir": "/x/runs/standard",
            "model": {**recipe["model"], **shape}}  # fmt: skip


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, honest: dict[str, Any]) -> Save:
    """Write a checkpoint whose recipe has other values at dotted keys."""

    def write(changes: dict[str, Any] | None = None, weights: dict[Any, Any] | None = None, **more: Any) -> Path:
        recipe = deepcopy(honest)
        for key, value in (changes or {}).items():
            *above, last = key.split("/")
            node = recipe
            for part in above:
                node = node[part]
            if value is REMOVED:
                del node[last]
            else:
                node[last] = value if key == "note" else planted(value, tmp_path)
        torch.manual_seed(0)
        state = {f"net.{k}": v for k, v in SmallCNN().state_dict().items()} | (weights or {})
        torch.save({"state_dict": state, "robustlit": pack(recipe), **more}, tmp_path / "x.ckpt")
        return tmp_path / "x.ckpt"

    return write


REMOVED = object()


def planted(value: Any, folder: Path) -> Any:
    """Put the path of the canary into a value."""
    if isinstance(value, str):
        return value.replace("PLANTED", str(folder / "planted"))
    if isinstance(value, list):
        return [planted(v, folder) for v in value]
    return {k: planted(v, folder) for k, v in value.items()} if isinstance(value, dict) else value


def nested(levels: int) -> Any:
    """A list within a list within a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels: int) -> Any:
    """A list of 2 ** levels values that shares its halves, as a YAML file with aliases does."""
    value: Any = ["lol"]
    for _ in range(levels):
        value = [value, value]
    return value


def loop() -> Any:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


MKDIR = {"_target_": "os.mkdir", "_args_": ["PLANTED"]}
NET = {"_target_": "robustlit.models.SmallCNN"}
ATTACKS: dict[str, dict[str, Any]] = {
    # Interpolations that build or read something when they are resolved.
    "oc.create with a target": {"model/width": "${oc.create:" + PLANT + "}"},
    "oc.create in the sweep": {"sweep/attacks": "${oc.create:{a: " + PLANT + "}}"},
    "oc.decode": {"model": "${oc.decode:'" + PLANT + "'}"},
    "oc.decode of another value": {"plant": PLANT, "model": "${oc.decode:${plant}}"},
    "oc.env": {"monitor": "${oc.env:SECRET}"},
    "oc.env within a resolver of ours": {"monitor": "${times:${oc.env:SECRET},1}"},
    "oc.select": {"data/seed": "${oc.select:objective}"},
    "oc.dict.values": {"data/seed": "${oc.dict.values:objective}"},
    "hydra resolver": {"monitor": "${hydra:runtime.cwd}"},
    "escaped": {"model/width": "\\${oc.create:" + PLANT + "}"},
    "escaped twice": {"model/width": "\\\\${oc.env:SECRET}"},
    "put together": {"a": "$", "b": "{oc.env:SECRET}", "model/width": "${a}${b}"},
    "nested key": {"a": "oc.env:SECRET", "monitor": "${${a}}"},
    "relative": {"data/seed": "${.batch_size}"},
    "relative to the parent": {"data/seed": "${..objective}"},
    "with spaces": {"monitor": "${ oc.env:SECRET }"},
    "custom resolver": {"monitor": "${no_such:1}"},
    "quoted": {"monitor": "${times:'a b',1}"},
    "unfinished": {"monitor": "${eps"},
    "leads nowhere": {"data/seed": "${nothing.at.all}"},
    "leads to itself": {"data/seed": "${data.seed}"},
    "leads to what holds it": {"data/seed": "${data}"},
    "grows": {**{f"k{n}": {"a": f"${{k{n + 1}}}", "b": f"${{k{n + 1}}}"} for n in range(60)}, "k60": 1,
              "data/seed": "${k0}"},
    "text that grows": {**{f"k{n}": f"${{k{n + 1}}}" * 50 for n in range(9)}, "k9": "lol", "monitor": "${k0}"},
    # Classes, in places that are built and that were not looked at.
    "objective reached by a reference": {"objective": MKDIR, "data/seed": "${objective}"},
    "optimizer reached from the model": {"optimizer": MKDIR, "model/width": "${optimizer}"},
    "validation attack": {"validation_attack": MKDIR, "callbacks/by_eps": {
        "_target_": "robustlit.callbacks.ImagesByEps", "attack": "${validation_attack}"}},
    "target by a reference": {"note": "os.mkdir", "model": {"_target_": "${note}", "path": "PLANTED"}},
    "target in a list": {"sweep/grid": {"linf": [MKDIR]}},
    "target in a list of lists": {"sweep/knowledge": [[[MKDIR]]]},
    "target in a callback": {"callbacks/evil": MKDIR},
    "logger": {"logger": MKDIR},
    "trainer": {"trainer": MKDIR},
    "trainer callbacks": {"trainer": {"_target_": "os.mkdir", "callbacks": [MKDIR]}},
    "model": {"model": MKDIR},
    "target null above another": {"model": {"_target_": None, "net": MKDIR}},
    "target in capitals": {"model": {"_target_": "ROBUSTLIT.models.SmallCNN"}},
    "target with a look-alike": {"model": {"_target_": "robustlit.models.SmallСNN"}},
    "target with a space": {"model": {"_target_": "robustlit.models.SmallCNN "}},
    "target a list": {"model": {"_target_": ["os.mkdir"]}},
    "target a truth": {"model": {"_target_": True}},
    "re-exported": {"model": {"_target_": "robustlit.models.cnn.nn.Linear", "in_features": 1, "out_features": 1}},
    "re-exported function": {"model": {"_target_": "robustlit.training.checkpoint.os.mkdir", "_args_": ["PLANTED"]}},
    "globals": {"model": {"_target_": "robustlit.models.SmallCNN.__init__.__globals__", "_args_": []}},
    "function of robustlit": {"model": {"_target_": "robustlit.models.load_generator", "path": "PLANTED"}},
    "class of another room": {"model": {"_target_": "robustlit.callbacks.SaveOnInterrupt", "path": "PLANTED"}},
    "module of training": {"callbacks/evil": {"_target_": "robustlit.training.AdvGANTraining"}},
    "hydra instantiate": {"model": {"_target_": "hydra.utils.instantiate", "config": MKDIR}},
    "get_method": {"model/width": {"_target_": "hydra.utils.get_method", "path": "os.system"}},
    "builtins": {"model/width": {"_target_": "builtins.eval", "_args_": ["1"]}},
    # Keys of Hydra's.
    "partial": {"model/_partial_": True},
    "arguments": {"model/_args_": [10]},
    "not recursive": {"model/_recursive_": False},
    "convert": {"sweep/_convert_": "none"},
    "hydra": {"hydra": {"searchpath": ["pkg://antigravity"]}},
    "defaults": {"defaults": [{"model": "base_cnn"}, "_self_"]},
    "top-level underscore": {"_target_": "os.mkdir"},
    "key that overrides": {"model@data": NET},
    "key with an interpolation": {"model/${oc.env:SECRET}": 1},
    # Values of unknown kinds and sizes.
    "number as a key": {"model/7": 1, "sweep": {"attacks": {3: MKDIR}}},
    "truth as a key": {"callbacks": {True: MKDIR}},
    "tensor": {"eps": torch.tensor(0.1)},
    "set": {"note": {1, 2}},
    "bytes": {"note": b"x"},
    "deep": {"note": nested(200)},
    "shared": {"note": doubled(21)},
    "loop": {"note": loop()},
    "long": {"note": "x" * 10_000_000},
    "huge number": {"data/batch_size": 10**12},
    "huger number": {"data/batch_size": 10**5000},
    "wide": {"model/width": 1e9},
    "wide and shallow": {"model/width": 3e4},
    "hidden": {"model/hidden": 10**9},
    "hidden, as large as memory allows": {"model/hidden": 10**6},
    "classes": {"model": {"_target_": "robustlit.models.EmbeddingClassifier", "net": NET, "num_classes": 10**6}},
    "no section": {"sweep": REMOVED},
    "section of another kind": {"data": "mnist"},
    "no eps": {"eps": REMOVED},
    "seed a text": {"seed": "1"},
    "name of an attack with an escape": {"sweep/attacks": {"\x1b[2Jpgd": {"_target_": "robustlit.attacks.PGD"}}},
    "line in a name": {"name": "a\nerror: all is well"},
    "direction of a name": {"name": "a\u202eb"},
    # Paths, names and the network.
    "name above runs": {"name": "../../x"},
    "name that is absolute": {"name": "/tmp/x"},
    "name that is a folder above": {"name": ".."},
    "timm from the hub": {"model": {"_target_": "robustlit.models.TimmNet", "name": "hf-hub:someone/evil"}},
    "timm from a folder": {"model": {"_target_": "robustlit.models.TimmNet", "name": "local-dir:/tmp"}},
    "timm from a file": {"model": {"_target_": "robustlit.models.TimmNet", "name": "test_resnet",
                                   "model_kwargs": {"checkpoint_path": "PLANTED"}}},
    "timm from an address": {"model": {"_target_": "robustlit.models.TimmNet", "name": "test_resnet", "model_kwargs": {
        "pretrained_cfg": {"url": "http://127.0.0.1:9/x", "source": "url"}}}},
    "substitute": {"sweep/substitute": "PLANTED", "sweep/knowledge": ["blackbox"]},
    "generator": {"generator": "PLANTED"},
    "generator of an attack": {"sweep/attacks": {
        "a": {"_target_": "robustlit.attacks.AdvGAN", "generator": "PLANTED"}}},
    "data of a folder": {"data": {"_target_": "robustlit.data.ImageFolder", "root": "/etc", "image_size": 8}},
    "data to download": {"data": {"_target_": "robustlit.data.CIFAR10", "root": "PLANTED"}},
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_recipe_is_one_line_and_does_nothing(
    attack: str, save: Save, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SECRET", "s3cret-value")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", no_network)
    save(ATTACKS[attack])
    before = everything(tmp_path)
    assert run("evaluate", "x.ckpt") == 1
    assert_nothing_happened(tmp_path, before, capsys)


def no_network(*arguments: Any) -> None:
    raise AssertionError(f"a connection was made: {arguments}")


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path != folder / "runs"}


def assert_nothing_happened(folder: Path, before: set[Path], capsys: Capture) -> None:
    shown = capsys.readouterr()
    assert everything(folder) == before
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 1500
    assert not [c for c in shown.err[:-1] if not c.isprintable()]
    assert "s3cret" not in shown.err + shown.out


def test_paths_of_an_honest_recipe_are_those_of_the_run(save: Save, run: Run, tmp_path: Path) -> None:
    images = {"_target_": "robustlit.callbacks.AdversarialImages", "attack": "${validation_attack}", "count": 10**6}
    elsewhere = str(tmp_path / "planted")
    evil = {"_target_": "robustlit.callbacks.ImagesByEps", "attack": "${validation_attack}", "folder": elsewhere}
    save({
        "run_dir": elsewhere, "ckpt_path": elsewhere, "sweep/folder": elsewhere, "monitor": "x",
        "callbacks/interrupt": {"_target_": "robustlit.callbacks.SaveOnInterrupt", "path": elsewhere},
        "callbacks/images": {**images, "folder": elsewhere}, "evil": evil, "callbacks/by_eps": "${evil}",
        "logger": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": elsewhere, "name": "../../x"},
        "trainer": {"_target_": "pytorch_lightning.Trainer", "default_root_dir": elsewhere, "profiler": "advanced",
                    "plugins": "x", "model_registry": "someone/evil", "devices": 10**6, "max_epochs": 1,
                    "callbacks": [MKDIR], "strategy": {"_target_": "os.mkdir"}},
    })  # fmt: skip
    assert run("evaluate", "x.ckpt") == 0
    left = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {("x.ckpt",), ("runs", "standard-eval")}
    assert (tmp_path / "runs" / "standard-eval" / "evaluation" / "adversarial_images.png").is_file()


def test_what_is_logged_goes_to_the_callers_account(honest: dict[str, Any]) -> None:
    logger = {"_target_": "robustlit.callbacks.wandb_logger", "project": "../someone/evil", "entity": "evil",
              "folder": "/x", "run_id": "abc", "config": {"a": 1}, "name": "x", "tags": ["a"]}  # fmt: skip
    own = sanitized_recipe({**honest, "logger": logger}, "x.ckpt")["logger"]
    assert own == {
        "_target_": logger["_target_"], "project": "robustlit", "name": "${name}", "group": "${name}",
        "job_type": "eval", "run_id": None, "folder": "${run_dir}", "tags": ["a"],
    }  # fmt: skip
    own = sanitized_recipe({**honest, "logger": {**logger, "project": "mine", "group": "g"}}, "x.ckpt")["logger"]
    assert (own["project"], own["group"]) == ("mine", "g")


def test_values_given_by_the_caller_count(save: Save, run: Run, tmp_path: Path) -> None:
    save({"sweep/folder": "/planted", "name": "../../x"})
    assert run("evaluate", "x.ckpt", "name=again", f"sweep.folder={tmp_path / 'mine'}") == 0
    assert (tmp_path / "mine" / "examples.parquet").is_file()
    assert (tmp_path / "runs" / "again-eval" / "results.json").is_file()


def test_budgets_still_follow_eps(honest: dict[str, Any]) -> None:
    grid = {"linf": "${budgets:linf,${eps},1/3,2/3, 1}"}
    recipe = sanitized_recipe(checked_recipe({**honest, "sweep": {**honest["sweep"], "grid": grid}}), "x.ckpt")
    config: Any = OmegaConf.to_container(overridden(recipe, ["eps=0.24"]), resolve=True)
    assert config["sweep"]["grid"]["linf"] == [0.08, 0.16, 0.24]
    assert config["sweep"]["attacks"]["fgsm"]["eps"] == 0.24


@pytest.mark.parametrize(("given", "kept"), [(None, None), (1, 1), (10**6, usable_cores()), ("1", usable_cores())])
def test_a_checkpoint_starts_no_more_processes_than_there_are_cores(
    honest: dict[str, Any], given: object, kept: int | None
) -> None:
    data = {"_target_": "robustlit.data.ImageFolder", "root": "pictures", "image_size": 8, "num_workers": given}
    assert sanitized_recipe({**honest, "data": data}, "x.ckpt")["data"]["num_workers"] == kept


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_recipes_that_come_with_robustlit_pass(name: str, tmp_path: Path) -> None:
    register_recipes(recipe_files())
    recipe = {**stored(composed([f"recipe={name}"])), "recipe": name, "name": name, "run_dir": str(tmp_path)}
    recipe["eps"] = chosen_eps(recipe)
    if "generator" in recipe:
        (tmp_path / "generator.pt").touch()
    own = sanitized_recipe(checked_recipe(recipe), str(tmp_path / "x.ckpt"))
    resolved = plain_values(OmegaConf.to_container(overridden(own, [f"run_dir={tmp_path}"]), resolve=True))
    for section, allowed in ALLOWED.items():
        check_names(resolved[section], allowed, section=section)
    if "download" in recipe["data"]:
        recipe["data"]["download"] = False  # the caller's to say
    assert {**own, "logger": recipe["logger"], "trainer": recipe["trainer"]} == {
        **recipe, "run_dir": None, **{key: own[key] for key in ("generator",) if key in own}
    }  # fmt: skip


@pytest.mark.parametrize("group", ["data", "sweep", "model"])
def test_files_of_groups_name_what_a_checkpoint_may_name(group: str) -> None:
    for file in sorted((recipes_folder() / group).glob("*.yaml")):
        settings = group_file(group, file.stem)
        for found in re.findall(r"_target_: ([\w.]+)", OmegaConf.to_yaml(settings)):
            assert found == "null" or found in (NETS if group == "model" else ALLOWED[group]), file


def test_a_class_of_the_users_own_needs_trust(
    save: Save, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\nfrom robustlit.models import SmallCNN\nclass Mine(SmallCNN): pass\n"
        "def build(): return Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for target, trust, code in (
        ("own_nets.Mine", [], 1), ("own_nets.build", ["trust=[own_nets]"], 1),
        ("own_nets.nn.Linear", ["trust=[own_nets]"], 1), ("own_nets.Mine", ["trust=[own_nets]"], 0),
    ):  # fmt: skip
        save({"model": {"_target_": target}})
        assert run("evaluate", "x.ckpt", "name=own", *trust) == code
        assert ("name its package: trust=[PACKAGE]" in capsys.readouterr().err) == bool(code)
    sys.modules.pop("own_nets", None)


def test_a_name_stays_inside_runs(run: Run, tmp_path: Path, capsys: Capture) -> None:
    for name in ("../x", "a/../../x", str(tmp_path / "y"), "..", "a//../b", "."):
        with pytest.raises(ConfigError, match="must name a folder inside runs/"):
            check_name(name)
    assert run("train", "recipe=standard", f"name='{name}'", "logger=none") == 1
    expected = f"error: name={name!a} must name a folder inside runs/; run_dir= takes any other new folder\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())
    for name in (None, "a", "a/b", "über", "a.b-c=1"):
        check_name(name)


# Other ways in


@pytest.mark.parametrize("attack", ["oc.create with a target", "model", "timm from a folder", "arguments", "hidden"])
def test_a_base_is_read_as_carefully(attack: str, save: Save, run: Run, tmp_path: Path, capsys: Capture) -> None:
    path = save(ATTACKS[attack])
    with pytest.raises(CheckpointError):
        load_classifier(path)
    before = everything(tmp_path)
    assert run("train", "recipe=jumprelu", "base=x.ckpt", "logger=none", "data.test_size=20") == 1
    assert_nothing_happened(tmp_path, before, capsys)


def test_a_base_lends_its_net_resolved(save: Save) -> None:
    path = save({"wide": 1.0, "model/width": "${wide}"})
    net, recipe = load_classifier(path)
    assert isinstance(net, SmallCNN)
    assert recipe is not None
    assert recipe["model"]["width"] == 1.0


RESUMED: dict[str, dict[str, Any]] = {
    "deletes elsewhere": {"callbacks": {"ModelCheckpoint": {"kth_best_model_path": "/run/checkpoints/../../home/x"}}},
    "deletes on a server": {"callbacks": {"ModelCheckpoint": {"best_k_models": {"s3://x/y": torch.tensor(1.0)}}}},
    "schedules": {"lr_schedulers": 3},
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_checkpoint_to_resume_from(case: str, save: Save, run: Run, tmp_path: Path, capsys: Capture) -> None:
    save(**RESUMED[case])
    before = everything(tmp_path)
    assert run("train", "recipe=standard", "model=small_cnn", "ckpt_path=x.ckpt", "logger=none") == 1
    assert_nothing_happened(tmp_path, before, capsys)


def test_the_id_of_a_resumed_run_is_an_id(save: Save, run: Run, capsys: Capture) -> None:
    save({"logger": {"_target_": None, "run_id": "../../x"}})
    assert run("train", "recipe=standard", "model=small_cnn", "ckpt_path=x.ckpt", "logger=none") == 1
    assert "logger.run_id='../../x', which is no id of W&B" in capsys.readouterr().err


# Weights and files

FIRST = "net.features.0.weight"  # (16, 1, 4, 4)
WEIGHTS: dict[str, dict[Any, Any]] = {
    "sparse": {FIRST: torch.zeros(16, 1, 4, 4).to_sparse()},
    "expanded": {FIRST: torch.zeros(1).expand(10**12)},
    "expanded to fit": {FIRST: torch.zeros(1).expand(16, 1, 4, 4)},
    "complex": {FIRST: torch.zeros(16, 1, 4, 4, dtype=torch.complex64)},
    "whole numbers": {FIRST: torch.zeros(16, 1, 4, 4, dtype=torch.int64)},
    "other shape": {FIRST: torch.zeros(3)},
    "without memory": {FIRST: torch.zeros(16, 1, 4, 4, device="meta")},
    "no tensor": {FIRST: [1.0, 2.0]},
    "name a number": {7: torch.zeros(1)},
    "name with an escape": {"net.\x1b[2J": torch.zeros(1)},
    "one too many": {"net.evil\u0435": torch.zeros(1)},
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_strange_weights(case: str, save: Save, run: Run, tmp_path: Path, capsys: Capture) -> None:
    save(weights=WEIGHTS[case])
    before = everything(tmp_path)
    assert run("evaluate", "x.ckpt") == 1
    assert_nothing_happened(tmp_path, before, capsys)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def old_format(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def no_dictionary(path: Path) -> None:
    torch.save([1, 2], path)


def recipe_of_another_kind(path: Path) -> None:
    torch.save({"state_dict": {}, "robustlit": {"format": 1, "config": ["a"]}}, path)


def format_of_another_kind(path: Path) -> None:
    torch.save({"state_dict": {}, "robustlit": {"format": torch.zeros(2), "config": None}}, path)


def state_of_another_kind(path: Path) -> None:
    torch.save({"state_dict": 3, "robustlit": pack(None)}, path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "damage",
    [compressed, old_format, no_dictionary, recipe_of_another_kind, format_of_another_kind, state_of_another_kind,
     truncated, a_pipe, a_device],
)  # fmt: skip
def test_strange_files(damage: Callable[[Path], None], save: Save, run: Run, tmp_path: Path, capsys: Capture) -> None:
    damage(save())
    before = everything(tmp_path)
    assert run("evaluate", "x.ckpt") == 1
    assert_nothing_happened(tmp_path, before, capsys)


def test_an_honest_recipe_is_evaluated(save: Save, run: Run, tmp_path: Path) -> None:
    save()
    assert run("evaluate", "x.ckpt") == 0
    assert (tmp_path / "runs" / "standard-eval" / "results.json").is_file()
