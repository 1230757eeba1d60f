"""The W&B sweeps: robustlit can run every command that an agent would start."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb_server import ENTITY, WandbServer

from robustlit.experiment.recipes import check_keys, recipe_files, recipes_folder, register_recipes
from robustlit.tracking.metrics import WORST, budget_of

Run = Callable[..., int]
SWEEPS = [recipes_folder() / "sweeps" / f"{name}.yaml" for name in ("eps", "kappa", "steps")]
each_sweep = pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
# What the schema of W&B's own package `sweeps` takes at the top of a sweep on a fixed grid.
KEYS = {"project", "name", "description", "program", "method", "metric", "command", "parameters"}
SHORT = [
    "data.train_size=300", "data.val_size=50", "data.test_size=20", "data.batch_size=100", "validation_attack.steps=1",
    "sweep.attacks.pgd.steps=2", "sweep.attacks.bim.steps=2",
]  # fmt: skip
IN_SHORT = {
    "eps": [*SHORT, "model=small_cnn", "trainer.max_epochs=1"],
    "steps": [*SHORT, "model=small_cnn", "++trainer.max_steps=3"],
    "kappa": [*SHORT, "base_epochs=1", "base=null", *(f"~sweep.attacks.{a}" for a in ("newtonfool", "ddn"))],
}


def read(file: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def command_of(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Return the arguments of one run as `wandb agent` composes them."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    made: list[str] = []
    for part in sweep["command"]:
        if part not in ("${env}", "${program}"):
            made += arguments.get(part.removeprefix("${").removesuffix("}"), [part])
    return made


def runs_of(sweep: dict[str, Any]) -> Iterator[list[str]]:
    parameters = sweep["parameters"]
    for values in itertools.product(*(parameter["values"] for parameter in parameters.values())):
        yield command_of(sweep, dict(zip(parameters, values, strict=True)))


@each_sweep
def test_a_sweep_is_one_that_wandb_takes(file: Path) -> None:
    sweep = read(file)
    assert set(sweep) <= KEYS
    assert sweep["method"] == "grid"
    assert sweep["metric"].keys() == {"name", "goal"}
    for parameter in sweep["parameters"].values():
        assert parameter.keys() == {"values"}
        assert len(parameter["values"]) == len(set(parameter["values"])) > 1


@each_sweep
def test_every_run_of_a_sweep_composes_and_ranks_by_its_metric(file: Path) -> None:
    sweep = read(file)
    composed = set()
    budget = budget_of(sweep["metric"]["name"])
    assert budget is not None
    label, norm, eps = budget
    assert label == WORST
    register_recipes(recipe_files())
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        for command, *overrides in runs_of(sweep):
            assert command == "train"
            config = compose("base", overrides=[*overrides, "hydra.verbose=false"])
            config.recipe = "a"
            check_keys(config)
            composed.add(str(config))
            budgets = {*config.sweep.grid[norm], config.eps}
            assert budgets == {*config.sweep.grid[norm]}  # else runs would be attacked at different budgets
            assert eps in budgets
    assert len(composed) == len(list(runs_of(sweep)))  # every run is another


@each_sweep
def test_the_comment_has_the_same_runs_without_a_server(file: Path) -> None:
    sweep = read(file)
    (line,) = [line for line in file.read_text().splitlines() if "train.py -m" in line]
    given = line.partition("-m ")[2].split()
    choices = [[f"{name}={value}" for value in values.split(",")] for name, values in (g.split("=", 1) for g in given)]
    without_server = {frozenset(run) for run in itertools.product(*choices)}
    assert without_server == {frozenset(overrides) for _, *overrides in runs_of(sweep)}


@pytest.mark.slow
@each_sweep
def test_a_run_of_a_sweep_yields_its_metric(file: Path, run: Run, tmp_path: Path) -> None:
    sweep = read(file)
    command, *overrides = list(runs_of(sweep))[1]
    short = IN_SHORT[file.stem]
    mine = [o for o in overrides if o.partition("=")[0] not in {s.partition("=")[0] for s in short}]
    assert run(command, *mine, *short, "name=a-run", "logger=csv") == 0
    header = (tmp_path / "runs" / "a-run" / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert sweep["metric"]["name"] in header


def test_sweeps_are_no_recipes_and_no_group_that_does_something(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert "kappa" not in capsys.readouterr().out.split()
    assert run("train", "recipe=standard", "+sweeps=eps") == 1
    assert "'sweeps', which nothing reads; did you mean sweep?" in capsys.readouterr().err


# With a server


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A server that keeps a sweep and hands out its first run."""
    with WandbServer() as server:
        sweeps: dict[str, str] = {}
        handed: list[str] = []

        def upsert(variables: dict[str, Any]) -> dict[str, Any]:
            sweeps["s1"] = variables["config"]
            project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": ENTITY}}
            return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}

        def kept(variables: dict[str, Any]) -> dict[str, Any]:
            return {"project": {"sweep": {"id": "S", "name": "s1", "config": sweeps["s1"], "runs": {"edges": []}}}}

        def heartbeat(variables: dict[str, Any]) -> dict[str, Any]:
            sweep = yaml.safe_load(sweeps["s1"])
            arguments = {name: {"value": parameter["values"][0]} for name, parameter in sweep["parameters"].items()}
            first = {"type": "run", "run_id": "run1", "program": sweep["program"], "args": arguments}
            commands = [] if handed else [first]
            handed.append("run1")
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}

        server.answers |= {"UpsertSweep": upsert, "SweepWithRuns": kept, "Heartbeat": heartbeat}
        server.answers["CreateAgent"] = lambda variables: {"createAgent": {"agent": {"id": "a"}}}
        server.answers["GetDefaultEntity"] = lambda variables: {"viewer": {"id": "u", "entity": ENTITY}}
        yield server


@pytest.mark.slow
def test_an_agent_runs_a_sweep(server: WandbServer, tmp_path: Path) -> None:
    sweep = read(recipes_folder() / "sweeps" / "eps.yaml")
    sweep["command"][-1:-1] = ["sweep.grid.linf=[0.1,0.3]", "callbacks.images=null", *IN_SHORT["eps"]]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(sweep))
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **server.environment(tmp_path / "own"), **own}

    def wandb(*arguments: str) -> str:
        command = [sys.executable, "-m", "wandb", *arguments]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 240}
        done = subprocess.run(command, cwd=tmp_path, env=environment, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert f"wandb agent {ENTITY}/robustlit/s1" in wandb("sweep", "short.yaml")
    said = wandb("agent", "--count", "1", f"{ENTITY}/robustlit/s1")
    assert "run1" in server.runs, said
    logged = server.runs["run1"]
    assert (logged.sweep, logged.exit_code, logged.project) == ("s1", 0, "robustlit")
    assert logged.config["eps"] == 0.1
    assert logged.config["logger"]["run_id"] == "run1"  # the agent's: a resumed run goes on in it
    assert sweep["metric"]["name"] in logged.summary
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["pgd_adv_train"]
