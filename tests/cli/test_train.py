"""`robustlit train` and `robustlit evaluate` from the recipe to results.json, in small."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustlit import Evaluation
from robustlit.cli.train import _check_labels, _keys, _label
from robustlit.experiment.recipes import recipe_files
from robustlit.training import load_classifier

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "train.py")
EXCERPT = [
    "data.train_size=1500", "data.batch_size=50", "data.val_size=100", "data.test_size=60", "data.eval_batch_size=30",
    "validation_attack.steps=2",
]  # fmt: skip
SMALL = [*EXCERPT, "sweep.attacks.pgd.steps=3", "sweep.attacks.bim.steps=2"]
SHORT = ["model=small_cnn", "trainer.max_epochs=1"]
TINY = [*SMALL, *SHORT]
PLAIN = [*EXCERPT, *SHORT, "sweep=none", "logger=none"]  # trained, not attacked

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def start(*command: str, folder: Path) -> subprocess.Popen[str]:
    """Start Python in a process of its own, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes)


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


# What a run leaves


@pytest.mark.faults
def test_a_net_that_is_lost_in_training_is_one_line(run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("train", "recipe=pgd_adv_train", *TINY, "logger=none", "optimizer.lr=1e30", "name=lost") == 1
    text = capsys.readouterr().err
    assert "error: training stopped at step 1, epoch 0: the loss is nan, which is not finite; the batch is in" in text
    left = {path.name for path in (tmp_path / "runs" / "lost" / "checkpoints").iterdir()}
    assert left == {"non_finite_step1.pt"}
    assert run("train", "recipe=pgd_adv_train", *TINY, "logger=none", "on_non_finite=ignore") == 1
    assert "on_non_finite must be one of stop, skip, got 'ignore'" in capsys.readouterr().err


def test_a_run_leaves_everything_that_the_readme_promises(run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("train", "recipe=pgd_adv_train", *TINY, "logger=csv", "trainer.max_epochs=4") == 0
    folder = tmp_path / "runs" / "pgd_adv_train"
    there = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert {
        "config.yaml", "results.json", "model_card.md", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "csv/metrics.csv", "evaluation/examples.parquet", "evaluation/curves_l2.csv", "evaluation/curves_l2.png",
        "evaluation/curves_l2.svg", "evaluation/adversarial_images.png",
    } <= there  # fmt: skip
    results, evaluation = results_of(folder), Evaluation.load(folder)
    assert results["recipe"] == "pgd_adv_train"
    assert (results["data"], results["n"], results["seed"], results["parameters"]) == ("MNIST", 60, 0, 166406)
    assert results["clean"]["accuracy"] == float(evaluation.clean_accuracy)
    low, high = results["clean"]["interval"]
    assert low < results["clean"]["accuracy"] < high
    assert [*results["attacks"]] == ["worst_case", "fgsm", "bim", "pgd"]
    for name, found in results["attacks"].items():
        assert (found["norm"], found["eps"]) == ("linf", 0.3)
        assert found["accuracy"] == float(evaluation.accuracy(attack=name, eps=0.3))
        assert found["passes"] > 1
    assert results["worst_case"]["accuracy"] == float(evaluation.worst_case(eps=0.3))
    assert results["worst_case"]["accuracy"] <= min(a["accuracy"] for a in results["attacks"].values())
    assert set(results["seconds"]) == {"train", "evaluate"}
    assert [*results["attack_seconds"]] == [*results["attacks"]]
    assert 0 < sum(results["attack_seconds"].values()) < results["seconds"]["evaluate"] + 1
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert results["device"]
    shown = capsys.readouterr().out
    for word in ("clean", "fgsm", "bim", "pgd", "worst case", f"{100 * results['clean']['accuracy']:.2f} %"):
        assert word in shown
    assert str(tmp_path) in (folder / "config.yaml").read_text()  # names the folder
    metrics = pd.read_csv(folder / "csv" / "metrics.csv")
    assert {"val/robust_accuracy", "robust/worst_case@linf=0.3"} <= set(metrics.columns)


@pytest.mark.slow
def test_the_checkpoint_attacked_is_the_best_by_robust_validation(run: Run, tmp_path: Path) -> None:
    assert run("train", "recipe=pgd_adv_train", *TINY, "logger=csv", "trainer.max_epochs=3", "optimizer.lr=0.02") == 0
    folder = tmp_path / "runs" / "pgd_adv_train"
    robust = pd.read_csv(folder / "csv" / "metrics.csv")["val/robust_accuracy"].dropna().tolist()
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(robust) == 3
    assert best["epoch"] == robust.index(max(robust))
    first = Evaluation.load(folder).to_frame()
    assert run("evaluate", str(folder / "checkpoints" / "best.ckpt"), "logger=none") == 0
    assert Evaluation.load(tmp_path / "runs" / "pgd_adv_train-eval").to_frame().equals(first)


SHORTER = {
    "pgd_adv_train": ["objective.attack.steps=2"],
    "pgd_adv_train_madry": ["objective.attack.steps=2", "trainer.max_steps=2"],
    "trades": ["objective.attack.steps=2"],
    "mart": ["objective.attack.steps=2"],
    "detect_and_correct": ["model=small_cnn", "base_epochs=2", "defense.examples=200"],
    "denoiser": ["model=small_cnn", "base_epochs=1"],
    "jumprelu": ["model=small_cnn", "base_epochs=1"],
    "jumprelu_random": ["model=small_cnn", "base_epochs=1", "data.test_size=20", "norm=linf", "eps=0.3"],
    "label_embedding": ["base_epochs=1"],
    "ibp_cnn7": ["model.width=4", "model.hidden=16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipe_files() if not name.startswith("cifar10_")])
def test_every_recipe_runs(recipe: str, run: Run, tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "~sweep.attacks.worst_case", *SHORTER.get(recipe, [])]
    assert run("train", f"recipe={recipe}", "sweep=linf", *SMALL, *short, "logger=none") == 0
    folder = tmp_path / "runs" / recipe
    assert results_of(folder)["n"] == (20 if recipe == "jumprelu_random" else 60)
    # What was saved loads.
    net, _ = load_classifier(folder)
    evaluation = Evaluation.load(folder)
    assert evaluation.attacks == ["fgsm", "bim", "pgd"]
    with torch.no_grad():
        assert net(torch.rand(2, 1, 28, 28)).shape[0] == 2


@pytest.mark.slow
def test_a_second_run_takes_a_new_folder_and_overrides_reach_it(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("train", "recipe=standard", *PLAIN) == 0
    assert run("train", "recipe=standard", *TINY, "logger=none", "eps=16/255", "sweep.grid.linf=[8/255]", "name=x") == 0
    assert {f.name for f in (tmp_path / "runs").iterdir()} == {"standard", "standard-2", "x"}
    assert "attacks" not in results_of(tmp_path / "runs" / "standard-2")
    assert results_of(tmp_path / "runs" / "standard")["clean"]["accuracy"] > 0.3
    assert results_of(tmp_path / "runs" / "x")["attacks"]["pgd"]["eps"] == pytest.approx(16 / 255)
    assert Evaluation.load(tmp_path / "runs" / "x").budgets("pgd") == pytest.approx([8 / 255, 16 / 255])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    def weights(name: str, *more: str) -> torch.Tensor:
        assert run("train", "recipe=fgsm_rs", *PLAIN, f"name={name}", *more) == 0
        state = torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return torch.cat([v.flatten() for v in state.values()])

    first = weights("a")
    assert torch.equal(weights("b"), first)
    assert not torch.equal(weights("c", "seed=1"), first)


@pytest.mark.slow
def test_a_recipe_folder_of_the_user(run: Run, tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    text = (ROOT / "recipes" / "standard.yaml").read_text()
    (mine / "own.yaml").write_text("# My own recipe.\n" + text)
    (mine / "wrong.yaml").write_text(text + "optimiser: {}\n")
    assert run("train", "recipe=own", "--config-dir", str(mine), *PLAIN) == 0
    assert results_of(tmp_path / "runs" / "own")["recipe"] == "own"
    assert run("recipes", f"--config-dir={mine}") == 0
    assert "My own recipe." in capsys.readouterr().out
    assert run("train", "recipe=wrong", f"--config-dir={mine}", *TINY) == 1
    assert "'optimiser', which nothing reads; did you mean optimizer?" in capsys.readouterr().err


@pytest.mark.slow
def test_each_job_gets_its_config_and_the_command_that_repeats_it(run: Run, tmp_path: Path, monkeypatch: Patch) -> None:
    jobs: list[tuple[float, str | None, list[str]]] = []
    labels: list[str] = []

    def train(config: Any, *, command: str | None = None, label: str = "") -> int:
        labels.append(label)
        os.environ["LOCAL_RANK"] = "3"  # as Lightning does, for the processes of this job alone
        jobs.append((config.eps, command, sys.argv))
        return len(jobs)

    monkeypatch.setattr("robustlit.experiment.train.train", train)
    assert run("train", "recipe=standard", "eps=8/255", "-cd", str(tmp_path), "name=a b") == 1
    typed = ["recipe=standard", "eps=8/255", "name=a b"]
    assert jobs == [("8/255", shlex.join(["robustlit", "train", "-cd", str(tmp_path), *typed]),
                     ["robustlit", "train", "-cd", str(tmp_path), *typed])]  # fmt: skip
    assert run("train", "-m", "recipe=standard", "eps=0.1,0.2") == 3
    assert [eps for eps, *_ in jobs[1:]] == [0.1, 0.2]
    assert [command for _, command, _ in jobs[1:]] == [f"robustlit train recipe=standard eps={e}" for e in (0.1, 0.2)]
    assert labels == ["", "eps_0.1", "eps_0.2"]
    assert "LOCAL_RANK" not in os.environ
    linked = "callbacks.images.attack=${validation_attack}"
    assert run("train", "recipe=standard", linked) == 4
    assert jobs[-1][1:] == (shlex.join(["robustlit", "train", "recipe=standard", linked]),
                            ["robustlit", "train", "recipe=standard", linked])  # fmt: skip


def test_what_differs_names_the_jobs_of_a_multirun() -> None:
    swept = _keys(
        ["recipe=a,b", "seed=0,1", "eps=8/255,0.1", "name=[1,2]", "+x.steps=1,2", "model=small_cnn"], swept=True
    )
    assert set(swept) == {"recipe", "seed", "eps", "x.steps"}
    job = ["recipe=a", "seed=1", "eps=8/255", "name=[1,2]", "+x.steps=2", "model=small_cnn"]
    assert _label(job, swept) == "recipe_a-seed_1-eps_8_255-steps_2"
    assert _label([word for word in job if "name" not in word], swept) == "seed_1-eps_8_255-steps_2"
    both = _keys(["a.steps=1,2", "b.steps=1,2"], swept=True)
    assert len(set(_label(["a.steps=1", "b.steps=2"], both).split("-"))) == 2
    assert _label(["seed=1", "~sweep.attacks.pgd"], {}) == ""
    assert _label(["name=a"], _keys(["name=a,b"], swept=True)) == ""  # the name does
    assert _label(["name=a", "seed=1"], _keys(["name=a,b", "seed=1,2"], swept=True)) == "seed_1"
    recipes = _keys(["recipe=a,b", "seed=0,1"], swept=True)
    for word in ("name=mine", "run_dir=there/mine"):
        assert _label(["recipe=a", "seed=1", word], recipes) == "recipe_a-seed_1"


def test_two_jobs_of_a_multirun_never_share_a_folder(run: Run, tmp_path: Path, capsys: Capture) -> None:
    keys = [f"data.a_key_with_a_long_name_{number}" for number in range(8)]
    jobs = [[*(f"{key}=1" for key in keys), f"seed={seed}"] for seed in (0, 1)]
    swept = _keys([*(f"{key}=1,2" for key in keys), "seed=0,1"], swept=True)
    labels = {_label(job, swept) for job in jobs}
    assert {len(label) for label in labels} == {100}
    assert len(labels) == 2
    for several in (
        ["recipe=a", "name='a/b',a_b"],
        ["recipe=a", "seed=1,2", "eps=range(1,9)"],
        ["recipe=a,b", "name=x"],
        ["recipe=a", "seed=1,1"],  # numbered
        ["recipe=a", "name=x${seed}", "seed=1,1"],
    ):
        _check_labels(several, _keys(several, swept=True))
    assert run("train", "-m", "recipe=standard", *PLAIN, "name=x", "monitor=a/b,a_b") == 2
    line = (
        "two of these runs would have one folder, x-monitor_a_b: that with monitor=a/b and that with monitor=a_b; start"
    )
    assert line in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# evaluate


@pytest.mark.slow
def test_evaluate_applies_overrides_by_the_stored_recipe(run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run("train", "recipe=standard", *PLAIN) == 0
    assert run("evaluate", "runs/standard", "eps=0.2", "sweep=linf", "sweep.attacks.pgd.steps=4", "name=again") == 0
    folder = tmp_path / "runs" / "again-eval"
    found = results_of(folder)["attacks"]["pgd"]
    assert found["eps"] == 0.2
    assert "steps=4" in json.loads((folder / "evaluation" / "evaluation.json").read_text())["attacks"]["pgd"]
    assert "train" not in results_of(folder)["seconds"]
    capsys.readouterr()
    assert run("evaluate", "runs/standard", "sweep.attacks.pgd.stepz=4") == 1
    assert "stepz" in capsys.readouterr().err
    assert run("evaluate", "runs/standard", "sweep=nonsense") == 1
    there = ", ".join(sorted(file.stem for file in (ROOT / "recipes" / "sweep").glob("*.yaml")))
    assert f"there is no sweep 'nonsense'; there are {there}" in capsys.readouterr().err
    assert run("evaluate", "runs/nowhere") == 1
    assert "no checkpoint at runs/nowhere" in capsys.readouterr().err
    assert run("evaluate") == 2


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_table(tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "logger=none"]
    training = start(TRAIN, "recipe=pgd_adv_train", *TINY, *two, "name=both", "eps=0.1", folder=tmp_path)
    out, error = training.communicate(timeout=900)
    assert training.returncode == 0, error
    assert "terminate called" not in error
    assert out.count("worst case") == 1
    command = ["-m", "robustlit", "evaluate", "runs/both", "trainer.devices=1", "name=one", "logger=none"]
    one = start(*command, folder=tmp_path)
    error = one.communicate(timeout=900)[1]
    assert one.returncode == 0, error
    tables = [Evaluation.load(tmp_path / "runs" / name).to_frame() for name in ("both", "one-eval")]
    assert tables[0]["index"].nunique() == 60
    assert 0.1 < tables[0]["success"].mean() < 0.9  # some examples are broken, some robust
    pd.testing.assert_frame_equal(*tables, check_exact=True)


# Stopping and going on


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_resumes_in_its_folder(tmp_path: Path) -> None:
    overrides = ["recipe=standard", *EXCERPT, "model=small_cnn", "sweep=none", "trainer.max_epochs=4000"]
    running = start(TRAIN, *overrides, folder=tmp_path)
    assert running.stderr is not None
    seen = ""
    try:
        while "epoch 3/" not in seen:
            line = running.stderr.readline()
            assert line, seen
            seen += line
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=300)[1]
    finally:
        running.kill()  # of 4000 epochs
    assert running.returncode == 130, rest
    last = tmp_path / "runs" / "standard" / "checkpoints" / "last.ckpt"
    assert f"ckpt_path={last}" in rest
    checkpoint = torch.load(last, weights_only=True)
    step = checkpoint["global_step"]
    assert f"interrupted at step {step}; to go on: the same command with resume=auto" in rest
    # The W&B run was closed: its file ends with an exit record, and the resumed run has its id.
    runs = list((tmp_path / "runs" / "standard" / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    identity = checkpoint["robustlit"]["config"]["logger"]["run_id"]
    assert runs[0].name.endswith(identity)
    epoch = 1500 // 50  # steps; a step between two epochs leaves no checkpoint
    stop = step + 5 + (-(step + 5)) % epoch
    end = ["trainer.max_epochs=-1", f"trainer.max_steps={stop}", f"ckpt_path={last}"]
    again = start(TRAIN, *overrides, *end, folder=tmp_path)
    error = again.communicate(timeout=900)[1]
    assert again.returncode == 0, error
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["standard"]
    assert torch.load(last, weights_only=True)["global_step"] == stop
    assert all(f.name.endswith(identity) for f in (tmp_path / "runs" / "standard" / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_ctrl_c_in_the_sweep_keeps_the_finished_part(
    run: Run, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    from robustlit.evaluation import Sweep

    attack_batch, calls = Sweep.attack_batch, []

    def interrupted(self: Sweep, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack_batch(self, *arguments)

    monkeypatch.setattr(Sweep, "attack_batch", interrupted)
    assert run("train", "recipe=standard", *TINY, "logger=none") == 130
    results = results_of(tmp_path / "runs" / "standard")
    assert results["n"] == 30
    assert results["complete"] is False
    assert not Evaluation.load(tmp_path / "runs" / "standard").complete
    assert "30 of 10000 test images, chosen class by class, cut short" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=pgd_adv_trian"], "did you mean pgd_adv_train"),
        (["recipe=standard", "epz=0.1"], r"^error: the recipe has no epz; did you mean eps\?\n$"),
        (["-m", "recipe=standard", "sweep=linf,nope"], r"^error: there is no sweep 'nope'; there are advgan, .*\n$"),
        (["recipe=standard", "eps=0.1,0.2"], r"^error: eps=0\.1,0\.2 gives several .*`robustlit train -m`.*\n$"),
        (["recipe=standard", "sweep=none", "verdict=quick"], "with sweep=none there is none: choose sweep=linf"),
        (["recipe=standard", "eps=8"], r"eps must be in \(0, 1\] pixel units, got 8; did you mean 8/255\?"),
        (["recipe=standard", "eps=0"], "eps must be positive"),
        (["recipe=standard", "eps=abc"], "eps must be a number"),
        (["recipe=pgd_adv_train", "objective.attack.steps=0"], "steps must be a whole number of at least 1"),
        (["recipe=standard", "data.train_size=100000"], "train_size"),
        (["recipe=standard", "model=timm", "model.name=resnet19"], "resnet18"),
        (["recipe=standard", "model=timm"], r"must give model\.name"),
        (["recipe=standard", "ckpt_path=nowhere.ckpt"], r"no checkpoint at .*nowhere\.ckpt"),
        (["recipe=standard", "data=image_folder", "data.root=nowhere", "data.image_size=28", "eps=0.1"], "nowhere"),
        (["recipe=standard", "data.batch_size=abc"], "batch_size must be a whole number of examples, got 'abc'"),
        (["recipe=standard", "seed=1.5"], "seed must be a whole number from 0 to"),
        (["recipe=standard", "trainer.max_epochs=abc"], r"error: [^\n]+\n$"),
        (["recipe=standard", "optimizer.lr=abc"], r"error: [^\n]+\n$"),
        (["recipe=standard", "optimizer=adam"], r"error: [^\n]+\n$"),
        (["recipe=standard", "schedule=5"], r"error: [^\n]+\n$"),
        (["recipe=standard", "checkpoint_minutes=-1"], "checkpoint_minutes must be positive"),
        ([], "which recipe"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    run: Run, tmp_path: Path, capfd: Capture, overrides: list[str], message: str
) -> None:
    more = [] if any(o.startswith("model") for o in overrides) or not overrides else ["model=small_cnn"]
    assert run("train", *overrides, *more) in (1, 2)
    error = capfd.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_run_folder_that_exists_is_left_alone(run: Run, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "precious").write_text("x")
    for argument in ("name=mine", f"run_dir={folder}"):
        assert run("train", "recipe=standard", *TINY, argument) == 1
        assert "exists already; choose another name= or run_dir=" in capsys.readouterr().err
    assert [f.name for f in folder.iterdir()] == ["precious"]


@pytest.mark.slow
def test_a_full_disk_does_not_cost_the_results(run: Run, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    replace = os.replace

    def full(part: Path, target: Path) -> None:
        if Path(target).name == "results.json":
            raise OSError(28, "No space left on device")
        replace(part, target)

    monkeypatch.setattr(os, "replace", full)
    assert run("train", "recipe=standard", *TINY, "logger=none") == 1
    shown = capsys.readouterr()
    assert "worst case" in shown.out
    assert re.search("could not be written.*No space left on device", shown.err)
