"""`robustlit dashboard`: what the view names is what runs log, and what it takes to save it."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb_records import records, values
from wandb_server import ENTITY, WandbServer, forget_login

from robustlit.tracking import server as view_server
from robustlit.tracking.logged import Logged, Summary

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
SAVED = "https://wandb.ai/a-team/robustlit?nw=abc"


@pytest.fixture(autouse=True)
def _own_login(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    """No login, and wandb keeps nothing from one test to the next."""
    forget_login(monkeypatch, tmp_path)
    for name in ("WANDB_MODE", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def names_in(panel: Any) -> list[str]:
    """Return every metric, file or table that a panel names, without the prefix that says where to look for it."""
    config, found = panel["config"], []
    for key in ("xAxis", "yAxis", "targetKey"):
        found += [config[key]] if config.get(key) else []
    found += config.get("metrics", []) + config.get("mediaKeys", [])
    found += [column["accessor"] for column in config.get("columns", [])]
    if panel["viewType"] == "Weave":
        found.append(config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])
    return [name.removeprefix("summary:") for name in found]


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Section -> panels."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def printed(capsys: Capture) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(capsys.readouterr().out)["spec"]
    return spec


# The names


@pytest.fixture
def logged(run: Run, tmp_path: Path, monkeypatch: Patch) -> SimpleNamespace:
    """A run of a recipe with everything that logs, and what its W&B files hold: metrics, files, recipe."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    guard, by_eps = "+callbacks.guard", "+callbacks.by_eps"
    arguments = [
        "recipe=pgd_adv_train", "model=small_cnn", "verdict=quick", "name=a-run", "trainer.max_epochs=1",
        "data.train_size=200", "data.val_size=50", "data.test_size=30", "data.batch_size=50", "objective.eps_scale=1",
        "objective.attack.eps=0.1", "sweep.knowledge=[adaptive,greybox]", "~sweep.attacks.bim",
        "sweep.attacks.pgd.steps=3", "sweep.grid.linf=[0.1]", "validation_attack.steps=2",
        f"{guard}._target_=robustlit.callbacks.CatastrophicOverfitting", f"{guard}.every=2", f"{guard}.steps=2",
        f"{by_eps}._target_=robustlit.callbacks.ImagesByEps", f"{by_eps}.attack=${{validation_attack}}",
        "trainer.log_every_n_steps=1",
    ]  # fmt: skip
    assert run("train", *arguments) == 0
    folder = tmp_path / "runs" / "a-run"
    found = records(folder)
    config: dict[str, Any] = {}
    for record in (*(r.get("config", {}) for r in found["run"]), *found.get("config", [])):
        config |= values(record)
    names: set[str] = set()
    for record in (*found["history"], *found["summary"]):
        files = {key.removesuffix("._type") for key in values(record) if key.endswith("._type")}
        names |= files | {key for key in values(record) if key.rpartition(".")[0] not in files}
    return SimpleNamespace(folder=folder, names=names, config=config)


@pytest.mark.slow
def test_the_view_of_a_run_names_exactly_what_it_logged(logged: SimpleNamespace, run: Run, capsys: Capture) -> None:
    capsys.readouterr()
    assert run("dashboard", "--dry-run", "--runs", str(logged.folder)) == 0
    spec = printed(capsys)
    named = {name for group in panels(spec).values() for panel in group for name in names_in(panel)}
    from_recipe = {name for name in named if name.startswith("config:")}
    # A median exists only where most images were broken; no defense, no kappa.
    may_lack = {*(name for name in named if name.endswith("/median_l2"))}
    assert named - from_recipe - may_lack - logged.names == set()
    for name in from_recipe - {"config:defense.value.kappa"}:
        first, *rest = name.removeprefix("config:").replace(".value", "", 1).split(".")
        value: Any = logged.config[first]
        for part in rest:
            value = value[part]
        assert isinstance(value, (int, float)), name
    # And nothing is left out: every curve, every worst case, every file and table.
    shown = {
        n for n in logged.names if n.startswith(("attack/", "robust/worst_case@", "images/", "figures/", "train/"))
    }
    shown |= {n for n in logged.names if n.endswith("/table") or n.startswith(("guard/", "verdict/"))}
    assert {"attack/pgd/accuracy", "attack/pgd-greybox/accuracy_linf", "robust/worst_case@linf=0.3"} <= shown
    assert {n for n in shown if "worst_case-greybox" not in n and not n.startswith("guard/collapsed")} - named == set()


def test_each_curve_is_drawn_over_its_own_distance(run: Run, capsys: Capture) -> None:
    assert run("dashboard", "--dry-run") == 0
    spec = printed(capsys)
    for name, distance, accuracy in (("L2", "l2", "accuracy"), ("L-inf", "linf", "accuracy_linf")):
        shown = [panel["config"] for panel in panels(spec)[f"Accuracy against {name} distance"]]
        drawn = [(config["xAxis"], config["metrics"]) for config in shown]
        attacks = ("worst_case", "fgsm", "bim", "pgd")
        assert drawn == [(f"attack/{a}/{distance}", [f"attack/{a}/{accuracy}"]) for a in attacks]
    runs = spec["section"]["runSets"][0]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    ranked = {"section": "summary", "name": "robust/worst_case@linf=0.3"}
    assert runs["sort"]["keys"][0] == {"key": ranked, "ascending": False}


def test_kinds_of_knowledge_share_a_panel() -> None:
    names = ["robust/worst_case@linf=0.1", "robust/a-b/auc_l2", "robust/a-b-greybox/auc_l2", "robust/cw-greybox/auc_l2"]
    logged = Logged.of([Summary(names)])
    assert logged.attacks == {"a-b": ["a-b-greybox", "a-b"], "cw": ["cw-greybox"]}
    assert logged.only(["cw"]).labels == ("cw-greybox",)


def test_the_budget_that_most_runs_quote_ranks() -> None:
    names = [f"robust/worst_case@{at}" for at in ("linf=0.1", "linf=8e-05", "linf=0.3", "l2=0.3")]
    for quoted in (("linf", 8e-5), ("l2", 0.3)):
        others = [Summary(names, ("linf", 0.1)), Summary(names)]
        assert Logged.of([*others, *[Summary(names, quoted)] * 2]).rank == f"robust/worst_case@{quoted[0]}={quoted[1]}"
    assert Logged.of([Summary(names, ("linf", 0.7))]).rank in names  # nothing was attacked there
    with pytest.raises(ValueError, match="no worst case"):
        Logged.of([Summary(["clean/accuracy"])])


def test_attacks_can_be_chosen(run: Run, capsys: Capture) -> None:
    assert run("dashboard", "--dry-run", "--attacks", "pgd,fgsm") == 0
    shown = [panel for group in panels(printed(capsys)).values() for panel in group]
    named = {name for panel in shown for name in (*names_in(panel), str(panel["config"].get("chartTitle")))}
    assert {"attack/pgd/l2", "robust/fgsm@linf=0.3", "fgsm within L-inf 0.3"} <= named
    assert not any("bim" in name for name in named)  # the specification as a whole has random ids


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--project", "a/b"], "must be 1 to 128 characters without any of / \\ # ? % :, got 'a/b'"),
        (["--dry-run", "--project", "  "], "--project must be"),
        (["--dry-run", "--entity", "x" * 129], "--entity must be"),
        (["--dry-run", "--entity", "me?nw=x"], "--entity must be"),
        (["--dry-run", "--name", "robust 🚀"], "--name must be without symbols"),
        (["--dry-run", "--url", SAVED], "--dry-run asks no server"),
        (["--dry-run", "--attacks", "pdg"], "no run has an attack named 'pdg'; there are worst_case, fgsm, bim, pgd"),
        (["--dry-run", "--runs", "nowhere"], "nowhere"),
        *(
            (["--url", url], "--url must be the address of a saved view")
            for url in ("https://wandb.ai/a/b", "not a url", "https://wandb.ai/?nw=a", "https://wandb.ai/a/b/c/d?nw=a")
        ),
        (["--url", SAVED, "--project", "other"], "--project other is not that of --url, robustlit"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Run, capsys: Capture, arguments: list[str], message: str) -> None:
    assert run("dashboard", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_named(run: Run, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert run("dashboard", "--dry-run") == 1
    assert 'pip install "robustlit[dashboard]"' in capsys.readouterr().err


# A server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: Patch) -> Iterator[WandbServer]:
    """A server that has views, and a client that is logged in there."""
    with WandbServer() as server:
        views: dict[str, dict[str, Any]] = {}

        def upsert(variables: dict[str, Any]) -> dict[str, Any]:
            name = variables["name"]
            new = name not in views
            assert new or variables["id"] == views[name]["id"]
            views[name] = {**variables, "id": f"id of {name}"}
            return {"upsertView": {"view": {"id": f"id of {name}", "name": name}, "inserted": new}}

        def view(variables: dict[str, Any]) -> dict[str, Any]:
            found = views.get(variables["viewName"])
            nodes = [{"node": {key: found[key] for key in ("id", "displayName", "spec")}}] if found else []
            return {"project": {"allViews": {"edges": nodes}}}

        server.views = views  # type: ignore[attr-defined]
        server.answers["GetDefaultEntity"] = lambda variables: {"viewer": {"id": "u", "entity": ENTITY}}
        server.answers["Runs"] = lambda variables: {"project": None}
        server.answers |= {"UpsertView2": upsert, "View": view}
        for name, value in server.environment(tmp_path / "wandb-own").items():
            monkeypatch.setenv(name, value)
        yield server


def _runs(*summaries: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answer with a project whose runs have these summaries."""

    def answer(variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for number, summary in enumerate(summaries):
            run = {
                "id": f"r{number}", "name": f"r{number}", "displayName": f"r{number}", "projectId": "1", "tags": [],
                "state": "finished", "config": json.dumps({"eps": {"value": 0.1}, "norm": {"value": "linf"}}),
                "group": None, "jobType": "train", "sweepName": None, "commit": None, "readOnly": False,
                "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": None, "description": None, "notes": None,
                "systemMetrics": "{}", "summaryMetrics": json.dumps(summary), "historyLineCount": 0,
                "user": {"name": ENTITY, "username": ENTITY}, "historyKeys": None,
            }  # fmt: skip
            edges.append({"node": run, "cursor": str(number)})
        runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "p", "runCount": len(edges), "readOnly": False, "runs": runs}}

    return answer


@pytest.mark.slow
def test_a_view_is_saved_and_renewed_and_keeps_what_its_owner_added(run: Run, server: Any, capsys: Capture) -> None:
    worst = {f"robust/worst_case@linf={eps}": 0.5 for eps in (0.1, 0.3)}
    server.answers["Runs"] = _runs({"clean/accuracy": 0.9}, {**worst, "robust/square/auc_l2": 0.1})
    assert run("dashboard", "--project", "my project") == 0
    url = capsys.readouterr().out.split()[1]
    assert url.startswith(f"{server.url}/{ENTITY}/my%20project?nw=")
    ((name, view),) = server.views.items()
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "my project", "robustlit")
    spec = json.loads(view["spec"])
    assert "attack/square/l2" in view["spec"]  # what the runs have, not what recipes have
    assert "attack/pgd/l2" not in view["spec"]
    assert spec["section"]["runSets"][0]["sort"]["keys"][0]["key"]["name"] == "robust/worst_case@linf=0.1"
    # Its owner adds a section, and orders by something else; a further run brings another attack.
    sections = spec["section"]["panelBankConfig"]["sections"]
    sections.append({**sections[0], "name": "Mine"})
    spec["section"]["runSets"][0]["sort"]["keys"][0]["key"]["name"] = "clean/accuracy"
    server.views[name]["spec"] = json.dumps(spec)
    server.answers["Runs"] = _runs({**worst, "robust/square/auc_l2": 0.1}, {**worst, "robust/fab/auc_l2": 0.1})
    wandb.teardown()
    assert run("dashboard", "--url", url) == 0
    assert list(server.views) == [name]
    spec = json.loads(server.views[name]["spec"])
    renewed = panels(spec)
    first, *_, last = renewed
    assert (first, last) == ("Ranking", "Mine")
    assert len(renewed) == len(sections)
    assert [p["config"]["chartTitle"] for p in renewed["Accuracy against L2 distance"]] == ["square", "fab"]
    assert spec["section"]["runSets"][0]["sort"]["keys"][0]["key"]["name"] == "clean/accuracy"
    assert server.views[name]["displayName"] == "robustlit"


@pytest.mark.slow
def test_a_project_without_runs_gets_the_view_of_the_recipes(run: Run, server: Any, capsys: Capture) -> None:
    assert run("dashboard", "--entity", "a-team", "--name", "Attacks") == 0
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("a-team", "robustlit", "Attacks")
    assert "attack/bim/l2" in view["spec"]
    assert "no run of a-team/robustlit was attacked yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_view_that_is_gone_is_one_line(run: Run, server: Any, capsys: Capture) -> None:
    assert run("dashboard", "--url", SAVED) == 1
    error = capsys.readouterr().err
    assert "Workspace `abc` not found in project `robustlit`" in error
    assert not server.views


def test_without_a_login_no_server_is_asked(run: Run, server: WandbServer, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    assert run("dashboard") == 1
    assert re.fullmatch("error: W&B is not logged in.*wandb login.*--dry-run.*\n", capsys.readouterr().err)
    assert server.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 401])
def test_a_server_that_is_gone_or_refuses_is_one_line(
    run: Run, server: WandbServer, capsys: Capture, monkeypatch: Patch, status: int | None
) -> None:
    monkeypatch.setattr(view_server, "TIMEOUT", 1)
    server.status = status
    if status is None:
        server.stop()
    assert run("dashboard") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: W&B at {server.url} cannot be reached, or does not let you in: ")
    assert error.count("\n") == 1
