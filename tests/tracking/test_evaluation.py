"""What a W&B run holds after an evaluation, read back from its files."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import wandb
import wandb_workspaces.workspaces as ws
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn
from wandb_records import records, values

from robustlit.attacks import FGSM, PGD
from robustlit.callbacks import AdversarialImages, AttackSweep, wandb_logger
from robustlit.data import MNIST
from robustlit.figures import attacked_to, distance_grid, known_at
from robustlit.objectives import Standard
from robustlit.results import Evaluation
from robustlit.tracking import metrics
from robustlit.tracking.dashboard import sections, specification
from robustlit.tracking.evaluation import area_under_curve, log_evaluation, summary_scalars
from robustlit.tracking.logged import Logged, Summary
from robustlit.training import RobustClassifier

ENDS = {"l2": 10.0, "linf": 0.5}
RUNS = [("fgsm", "adaptive"), ("pgd", "adaptive"), ("fgsm", "greybox"), ("pgd", "greybox")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trained_state: dict[str, torch.Tensor]) -> Iterator[SimpleNamespace]:
    """An offline run into which a training step, a sweep and an image grid were logged."""
    from robustlit.models import SmallCNN

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder / "own"))
        patch.setenv("WANDB_MODE", "offline")
        net = SmallCNN()
        net.load_state_dict(trained_state)
        logger = wandb_logger(
            name="a-name", group="a-group", job_type="eval", run_id="abc123", folder=folder,
            config={"eps": 0.3, "model": {"_target_": "SmallCNN"}}, tags=["a-tag"],
        )  # fmt: skip
        attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=5)}
        sweep = AttackSweep(
            attacks, grid={"linf": [0.05, 0.3]}, knowledge=("adaptive", "greybox"), curve_linf=ENDS["linf"]
        )
        trainer = pl.Trainer(
            accelerator="cpu", logger=logger, callbacks=[sweep, AdversarialImages(attacks["fgsm"], count=4)],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
            log_every_n_steps=1, num_sanity_val_steps=0,
        )  # fmt: skip
        module = RobustClassifier(net, Standard(), partial(torch.optim.Adam, lr=1e-4), num_classes=10)
        data = MNIST(train_size=200, val_size=50, test_size=80, batch_size=50)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        wandb.finish()
        assert sweep.evaluation is not None
        yield SimpleNamespace(folder=folder, evaluation=sweep.evaluation, records=records(folder / "wandb"))


def history(run: SimpleNamespace) -> pd.DataFrame:
    return pd.DataFrame([values(record) for record in run.records["history"]])


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "knowledge"), RUNS)
@pytest.mark.parametrize("distance", ["l2", "linf"])
def test_history_holds_each_curve_by_distance(run: SimpleNamespace, attack: str, knowledge: str, distance: str) -> None:
    at, accuracy = metrics.curve(run.evaluation.label(attack, knowledge), distance)
    logged = history(run)[[at, accuracy]].dropna()
    expected = run.evaluation.curve(attack, distance=distance, knowledge=knowledge, at=distance_grid(ENDS[distance]))
    known = known_at(run.evaluation, attack, distance=distance, knowledge=knowledge, at=expected["distance"])
    np.testing.assert_allclose(logged[at], expected["distance"][known])  # the same points for every attack and run
    np.testing.assert_allclose(logged[accuracy], expected["accuracy"][known])
    assert (logged[accuracy].diff().dropna() <= 0).all()
    assert logged[accuracy].iloc[0] > logged[accuracy].iloc[-1]


@pytest.mark.slow
def test_curves_are_plotted_over_distance_by_their_exact_names(run: SimpleNamespace) -> None:
    defined = {m["name"]: m for m in run.records["metric"] if "name" in m}
    for attack, knowledge in RUNS:
        for distance in ENDS:
            at, accuracy = metrics.curve(run.evaluation.label(attack, knowledge), distance)
            assert defined[accuracy]["step_metric"] == at
            assert not defined[accuracy]["options"].get("step_sync")
            assert defined[at]["options"]["hidden"]
            for name in (at, accuracy):
                assert defined[name]["summary"] == {"none": True}
    assert not any("attack" in m.get("glob_name", "") for m in run.records["metric"])


@pytest.mark.slow
def test_training_goes_on_being_logged_by_its_steps(run: SimpleNamespace) -> None:
    logged = history(run)[["trainer/global_step", "train/loss"]].dropna()
    assert logged["trainer/global_step"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_summary_holds_the_numbers_to_rank_by(run: SimpleNamespace) -> None:
    summary = {k: v for record in run.records["summary"] for k, v in values(record).items()}
    evaluation = run.evaluation
    expected = {
        "clean/accuracy": evaluation.clean_accuracy,
        "robust/worst_case@linf=0.3": evaluation.worst_case(eps=0.3),
        "robust/worst_case@linf=0.05": evaluation.worst_case(eps=0.05),
        "robust/pgd@linf=0.1": evaluation.accuracy(attack="pgd", eps=0.1),
        "robust/fgsm-greybox@linf=0.3": evaluation.accuracy(attack="fgsm", eps=0.3, knowledge="greybox"),
        "robust/worst_case-greybox@linf=0.1": evaluation.worst_case(eps=0.1, knowledge="greybox"),
        "robust/pgd/auc_l2": area_under_curve(evaluation, "pgd", "l2", 10.0),
        "robust/pgd/auc_linf": area_under_curve(evaluation, "pgd", "linf", 0.5),
        "robust/pgd/median_l2": evaluation.median_distance("pgd"),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(float(value)), name
    assert not any(name.startswith("attack/") for name in summary)
    assert not any(name.startswith(("robust/p", "robust/w", "clean/")) for name in history(run))  # no steps of a curve


@pytest.mark.slow
def test_the_table_is_long_form(run: SimpleNamespace) -> None:
    (file,) = run.folder.rglob("media/table/robust/*.table.json")
    found = json.loads(file.read_text())
    frame = pd.DataFrame(found["data"], columns=found["columns"])
    assert list(frame.columns) == ["attack", "knowledge", "norm", "eps", "accuracy", "low", "high", "n", "median_l2"]
    assert list(zip(frame["attack"], frame["knowledge"], strict=True)) == [r for r in RUNS for _ in range(3)]
    for row in frame.itertuples():
        reached = run.evaluation.accuracy(attack=row.attack, knowledge=row.knowledge, norm=row.norm, eps=row.eps)
        assert (row.accuracy, row.low, row.high, row.n) == (float(reached), *reached.interval, 80)


@pytest.mark.slow
def test_figures_and_images_are_there(run: SimpleNamespace) -> None:
    for pattern in ("figures/curves_l2*.png", "figures/curves_linf*.png", "images/grid*.png"):
        found = [f for f in run.folder.rglob(f"media/*/{pattern}") if f.stat().st_size > 300]
        assert len(found) == 1, pattern
    (file,) = run.folder.rglob("media/table/images/table*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["index", "label", "clean", "clean_prediction", "adversarial", "prediction"]
    _, y, index = MNIST(test_size=80).tensors("test")
    label_of = dict(zip(index.tolist(), map(str, y.tolist()), strict=True))
    assert [row[1] for row in table["data"]] == [label_of[row[0]] for row in table["data"]]
    assert len({row[1] for row in table["data"]}) == len(table["data"]) == 4  # of as many classes as there are
    # The pictures themselves travel in the table's artifact.
    artifacts = [a["manifest"]["contents"] for a in run.records["artifact"] if "imagestable" in a["name"]]
    assert len(artifacts) == 1
    pictures = [entry for entry in artifacts[0] if entry["path"].endswith(".png")]
    assert len(pictures) == 8  # clean and adversarial, all different


# Without W&B


@pytest.fixture
def evaluation(net: nn.Module, digits: tuple[torch.Tensor, torch.Tensor]) -> Evaluation:
    """An evaluation of 50 digits; a third are robust, because the attack takes short steps."""
    from robustlit.evaluation import evaluate

    return evaluate(net, (digits[0][:50], digits[1][:50]), [FGSM(eps=0.1), PGD(eps=0.2, steps=3, step_size=0.02)])


def test_other_loggers_get_the_scalars(evaluation: Evaluation, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    log_evaluation(logger, evaluation, ENDS)
    logger.save()
    (row,) = pd.read_csv(next(tmp_path.rglob("metrics.csv"))).to_dict("records")
    scalars = summary_scalars(evaluation)
    assert {"clean/accuracy", "robust/fgsm@linf=0.1", "robust/worst_case@linf=0.2"} <= set(scalars)
    for name, value in scalars.items():
        assert row[name] == pytest.approx(value), name
    assert row["robust/fgsm/auc_l2"] == pytest.approx(area_under_curve(evaluation, "fgsm", "l2", 10.0))


def test_the_area_is_the_mean_of_the_curve(evaluation: Evaluation) -> None:
    grid = np.linspace(0, 0.2, 4001)  # attacked up to 0.2
    accuracy = evaluation.curve("pgd", distance="linf", at=grid)["accuracy"].to_numpy()
    mean = (accuracy[1:] + accuracy[:-1]).mean() / 2
    assert 0 < accuracy[-1] < 1
    assert area_under_curve(evaluation, "pgd", "linf", 0.2) == pytest.approx(mean, abs=1e-3)
    assert area_under_curve(evaluation, "pgd", "linf", 0.1) > mean


def test_distances_that_were_not_attacked_count_as_zero(evaluation: Evaluation) -> None:
    within = area_under_curve(evaluation, "pgd", "linf", 0.2)
    assert area_under_curve(evaluation, "pgd", "linf", 0.8) == pytest.approx(within / 4)
    robust = Evaluation(evaluation.to_frame().assign(success=False, clean=True))
    assert area_under_curve(robust, "pgd", "linf", 0.2) == pytest.approx(1)
    assert area_under_curve(robust, "pgd", "linf", 1.0) == pytest.approx(0.2)
    end = attacked_to(robust, "pgd", distance="l2")
    assert area_under_curve(robust, "pgd", "l2", 10.0) == pytest.approx(end / 10)


def test_no_median_is_logged_where_most_are_robust(evaluation: Evaluation) -> None:
    frame = evaluation.to_frame()
    frame.loc[frame["attack"] == "fgsm", "success"] = False
    scalars = summary_scalars(Evaluation(frame))
    assert "robust/fgsm/median_l2" not in scalars
    assert scalars["robust/pgd/median_l2"] == evaluation.median_distance("pgd")


def test_the_worst_case_logged_is_not_that_of_one_attack(evaluation: Evaluation) -> None:
    frame = evaluation.to_frame()
    frame.loc[(frame["attack"] == "fgsm") == (frame["index"] < 25), "success"] = False  # each breaks its own half
    scalars = summary_scalars(Evaluation(frame))
    broken = frame.loc[frame["success"], "index"].nunique()
    assert scalars["robust/worst_case@linf=0.2"] == pytest.approx(1 - broken / 50)
    assert scalars["robust/worst_case@linf=0.2"] < scalars["robust/pgd@linf=0.2"]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A W&B run that records what is logged, as `WandbLogger.experiment`."""
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(summary={}, logged=logged, log=logged.append, define_metric=lambda *names, **how: None)
    monkeypatch.setattr(WandbLogger, "experiment", run)
    return run


def test_a_logger_that_fails_is_a_warning(
    evaluation: Evaluation, tmp_path: Path, recorder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: object) -> None:
        raise wandb.errors.CommError("the network is gone")

    monkeypatch.setattr(CSVLogger, "log_metrics", lambda self, values: fail(values))
    recorder.log = fail
    for logger in (WandbLogger(save_dir=tmp_path, mode="offline"), CSVLogger(tmp_path)):
        warning = f"{type(logger).__name__} did not take the evaluation: CommError: the network is gone"
        with pytest.warns(UserWarning, match=warning):
            log_evaluation(logger, evaluation, ENDS)


def test_many_curves_take_few_records_and_minimal_attacks_have_their_row(
    evaluation: Evaluation, tmp_path: Path, recorder: SimpleNamespace
) -> None:
    frame = evaluation.to_frame()
    fgsm = frame[frame["attack"] == "fgsm"]
    more = [fgsm.assign(attack=f"copy{k}") for k in range(7)]
    minimal = fgsm.assign(attack="deepfool", norm="l2", eps=float("nan"), success=False)
    log_evaluation(WandbLogger(save_dir=tmp_path, mode="offline"), Evaluation(pd.concat([frame, *more, minimal])), ENDS)
    # A record of W&B's costs about a millisecond: a point each would be 2020 of them.
    assert len(recorder.logged) <= 110
    # Attacked up to 0.1 and 0.2: nothing is known farther away.
    for name, points in (("copy6", 21), ("pgd", 41), ("deepfool", 101)):
        logged = [values for values in recorder.logged if f"attack/{name}/accuracy_linf" in values]
        assert len(logged) == points
        assert all(f"attack/{name}/linf" in values for values in logged)
    assert not any(f"attack/copy6/{d}" in recorder.logged[100] for d in ("l2", "linf"))
    (table,) = [values["robust/table"] for values in recorder.logged if "robust/table" in values]
    rows = {row[0]: row for row in table.data}
    assert rows["deepfool"] == ["deepfool", "adaptive", "l2", None, None, None, None, 50, None]
    assert rows["copy3"][3:5] == [0.1, float(evaluation.accuracy(attack="fgsm", eps=0.1))]


def test_the_dashboard_shows_the_names_that_are_logged(
    evaluation: Evaluation, tmp_path: Path, recorder: SimpleNamespace
) -> None:
    log_evaluation(WandbLogger(save_dir=tmp_path, mode="offline"), evaluation, ENDS)
    logged = Logged.of([Summary([*recorder.summary], ("linf", 0.2))])
    assert (logged.labels, logged.quoted, logged.rank) == (("fgsm", "pgd"), ("linf", 0.2), "robust/worst_case@linf=0.2")
    view = json.dumps(specification(ws.Workspace(entity="e", project="p", sections=sections(logged))))
    for name in {*recorder.summary, *(name for record in recorder.logged for name in record)}:
        other_budget = "@" in name and "worst_case" not in name and not name.endswith("=0.2")
        assert other_budget or "/auc_" in name or f'"{name}"' in view or f'"summary:{name}"' in view, name


def test_names_are_read_as_they_are_written() -> None:
    for label in ("pgd", "worst_case-greybox"):
        for eps in (0.3, 8 / 255, 8e-5, 0.0):
            found = metrics.budget_of(metrics.robust(label, "linf", eps))
            assert found == (label, "linf", float(f"{eps:g}"))
        assert metrics.label_of_area(metrics.area(label, "l2")) == label
    assert metrics.budget_of(metrics.median("pgd")) is None
    assert metrics.label_of_area(metrics.CLEAN) is None
