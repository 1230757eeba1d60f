"""RobustClassifier in a real Trainer, on real digits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlit.attacks import PGD
from robustlit.certify import IBP
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import TRADES, AdversarialTraining, Standard
from robustlit.training import BaseCNNClassifier, RobustClassifier
from robustlit.training.classifier import training_steps

MakeTrainer = Callable[..., pl.Trainer]

ADVERSARIAL = AdversarialTraining(PGD(eps=0.1, steps=2), warmup=0.5)
one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3)


def module(seed: int = 0, **changes: Any) -> RobustClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = changes.pop("net", None) or SmallCNN()
    settings: dict[str, Any] = {
        "objective": ADVERSARIAL,
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "num_classes": 10,
        "schedule": one_cycle,
        "validation_attack": PGD(eps=0.1, steps=2),
        "seed": seed,
    }
    return RobustClassifier(net, **{**settings, **changes})


def data(**changes: Any) -> MNIST:
    return MNIST(**{"batch_size": 50, "train_size": 400, "val_size": 100, "test_size": 100, **changes})


def weights(lit: RobustClassifier) -> Tensor:
    return torch.cat([p.detach().flatten() for p in lit.net.parameters()])


@pytest.mark.slow
def test_it_learns_to_be_robust(trainer: MakeTrainer) -> None:
    fit = trainer(max_epochs=4)
    fit.fit(module(), datamodule=data(train_size=2000))
    metrics = {k: float(v) for k, v in fit.callback_metrics.items()}
    assert metrics["val/accuracy"] > 0.8
    assert 0.3 < metrics["val/robust_accuracy"] <= metrics["val/accuracy"]
    assert metrics["train/accuracy"] > 0.5


def test_training_accuracy_counts_every_answer_once(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustlit.training.classifier.ANSWERS", 3)
    right: list[Tensor] = []

    class Counted(Standard):
        def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Any:
            output = super().__call__(net, x, y)
            right.append(output["logits"].argmax(1) == y)
            return output

    lit = module(objective=Counted())
    lit._answers = [(torch.zeros(5, 10), torch.zeros(5, dtype=torch.int64))]  # of an epoch that was broken off
    for every in (0, 2):
        right.clear()
        fit = trainer(max_epochs=1, limit_train_batches=7, log_every_n_steps=every)
        fit.fit(lit, datamodule=data())
        assert float(fit.callback_metrics["train/accuracy"]) == pytest.approx(float(torch.cat(right).float().mean()))
        assert "train/loss" in fit.callback_metrics


@pytest.mark.parametrize("inference_mode", [True, False])
def test_it_validates_under_attack(trainer: MakeTrainer, inference_mode: bool) -> None:
    lit = module(objective=Standard())
    fit = trainer(max_epochs=3, inference_mode=inference_mode)
    fit.fit(lit, datamodule=data())
    metrics = {k: float(v) for k, v in fit.callback_metrics.items()}
    assert {*lit.monitors} == {name for name in metrics if name.startswith("val/")}
    # Measured again by hand, in one batch.
    x, y, index = (torch.cat(parts) for parts in zip(*data().val_dataloader(), strict=True))
    broken = PGD(eps=0.1, steps=2).run(lit.net, x, y, index=index, seed=0).success
    assert metrics["val/accuracy"] == pytest.approx(float((lit.net(x).argmax(1) == y).float().mean()), abs=0.011)
    assert metrics["val/robust_accuracy"] == pytest.approx(float((~broken).float().mean()), abs=0.011)
    assert metrics["val/robust_accuracy"] < metrics["val/accuracy"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(trainer: MakeTrainer) -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the surroundings must not matter
        lit = module(seed)
        trainer().fit(lit, datamodule=data(shuffle_seed=seed))
        return weights(lit)

    first = run(0)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


@pytest.mark.parametrize("step", [3, 8, 13])  # in an epoch, at its end, in the next
def test_stop_and_resume_equals_an_uninterrupted_run(
    step: int, trainer: MakeTrainer, interrupted: Callable[..., Path]
) -> None:
    whole = module()
    trainer().fit(whole, datamodule=data())
    path = interrupted(module(), data(), step)
    resumed = module(seed=0, net=SmallCNN())  # other weights until the checkpoint is read
    trainer().fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_schedule_spans_the_training(trainer: MakeTrainer) -> None:
    lit = module()
    fit = trainer(max_epochs=3, limit_train_batches=4)
    fit.fit(lit, datamodule=data())
    schedule: Any = lit.lr_schedulers()
    assert schedule.total_steps == fit.global_step == 12
    assert lit.objective.eps == pytest.approx(0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 16),
        ({"max_steps": 5}, 5),
        ({"limit_train_batches": 0.5}, 8),
        ({"limit_train_batches": 3}, 6),
        ({"accumulate_grad_batches": 3}, 6),
    ],
)
def test_training_steps_are_those_that_fit_takes(changes: dict[str, Any], steps: int, trainer: MakeTrainer) -> None:
    fit = trainer(**changes)
    lit = module()
    fit.fit(lit, datamodule=data())
    assert training_steps(fit) == fit.global_step == steps


def test_without_a_datamodule_the_length_must_be_given(digits: tuple[Tensor, Tensor], trainer: MakeTrainer) -> None:
    loader = DataLoader(TensorDataset(*digits), batch_size=50)
    with pytest.raises(ValueError, match="max_steps"):
        trainer().fit(module(), loader)
    trainer(max_steps=4).fit(module(), loader, loader)  # a user's own loader, without indices


def test_warm_up_follows_the_step(trainer: MakeTrainer) -> None:
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, fit: pl.Trainer, lit: Any, *args: Any) -> None:
            seen.append(lit.objective.eps)

    lit = module(objective=AdversarialTraining(PGD(eps=0.2, steps=1), warmup=0.5))
    trainer(max_epochs=1, callbacks=[Watch()]).fit(lit, datamodule=data())
    assert seen == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2])


def test_evaluation_is_in_float32_whatever_training_is_in(trainer: MakeTrainer) -> None:
    seen: dict[str, set[torch.dtype]] = {"train": set(), "eval": set()}

    class Spy(SmallCNN):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            seen["train" if watch["training"] else "eval"].add(logits.dtype)
            return logits

    watch = {"training": False}

    class Watch(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            watch["training"] = True

        def on_validation_start(self, *args: Any) -> None:
            watch["training"] = False

    lit = module(net=Spy())
    fit = trainer(max_epochs=1, precision="bf16-mixed", callbacks=[Watch()])
    fit.fit(lit, datamodule=data())
    watch["training"] = False
    fit.test(lit, datamodule=data(), verbose=False)
    assert torch.bfloat16 in seen["train"]
    assert seen["eval"] == {torch.float32}


def bad(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], digits: tuple[Tensor, Tensor]) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*change(digits[0].clone(), digits[1].clone())), batch_size=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: ((x - 0.13) / 0.31, y), "most likely normalised"),
        (lambda x, y: (x * 255, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x.where(x < 0.99, float("nan")), y), "found NaN"),
        (lambda x, y: (x, y + 5), r"labels must lie in \[0, 9\]"),
    ],
)
def test_bad_data_is_refused_at_the_first_batch(
    digits: tuple[Tensor, Tensor], change: Any, message: str, trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(max_steps=4).fit(module(), bad(change, digits))
    with pytest.raises(ValueError, match=message):
        trainer().test(module(objective=Standard()), bad(change, digits), verbose=False)


@pytest.mark.parametrize(
    ("net", "message"),
    [(nn.Conv2d(1, 10, 3), r"logits \(B, K\)"), (SmallCNN(num_classes=7), "7 logits for 10 classes")],
)
def test_a_net_with_other_outputs_is_refused(net: nn.Module, message: str, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=message):
        trainer().fit(module(net=net), datamodule=data())


def test_the_check_leaves_batchnorm_alone(digits: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    net[1].eval()
    lit = module(net=net)
    before = net[1].running_mean.clone()
    lit._check((digits[0][:50], digits[1][:50]))
    assert torch.equal(net[1].running_mean, before)
    assert [m.training for m in net.modules()] == [True, True, False, True]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.uint16])
def test_labels_of_any_integer_type_and_float64_images_train_alike(
    kind: torch.dtype, digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    x, y = digits[0][:64], digits[1][:64] % 2
    trained = []
    for images, labels in ((x, y), (x.double(), y.to(kind))):
        lit = module(validation_attack=PGD(eps=0.1, steps=1), objective=TRADES(PGD(eps=0.1, steps=1), beta=2.0))
        loader = DataLoader(TensorDataset(images, labels), batch_size=32)
        run = trainer(max_epochs=-1, max_steps=2)
        run.fit(lit, loader, loader)
        run.test(lit, loader, verbose=False)
        trained.append(weights(lit))
    assert torch.equal(*trained)


def test_labels_of_another_shape_or_kind_are_refused_with_the_way_out(
    digits: tuple[Tensor, Tensor], trainer: MakeTrainer
) -> None:
    x, y = digits[0][:32], digits[1][:32]
    for labels, message in (
        (y.unsqueeze(1), r"got \(32, 1\); use y.squeeze\(1\)"),
        (torch.nn.functional.one_hot(y, 10), r"of one-hot labels use y.argmax\(1\)"),
        (y.float(), r"got torch.float32; use y.long\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(max_epochs=-1, max_steps=1).fit(module(), DataLoader(TensorDataset(x, labels), batch_size=32))


@pytest.mark.parametrize(
    ("precision", "certificate"),
    [("32-true", IBP(2e-4, rounds=1)), ("bf16-mixed", IBP(2e-4, rounds=1)), ("32-true", IBP(3e-4, rounds=8))],
)
def test_validation_counts_what_a_certificate_proves_at_its_eps(
    trainer: MakeTrainer, precision: str, certificate: IBP
) -> None:
    lit = module(validation_certificate=certificate, validation_attack=PGD(eps=2e-4, steps=2))
    split = data(eval_batch_size=30)
    run = trainer(max_epochs=-1, max_steps=8, precision=precision)
    run.fit(lit, datamodule=split)
    x, y, _ = split.tensors("val")
    radius = certificate.run(lit.net, x, y).radius
    proven = radius >= certificate.eps
    assert certificate.rounds == 1 or (radius[~proven] > 0).any()  # smaller radii, which do not count
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["val/certified_accuracy"] == pytest.approx(proven.float().mean().item())
    assert 0 < found["val/certified_accuracy"] <= found["val/robust_accuracy"]


def test_weights_in_float64_train_and_evaluate(digits: tuple[Tensor, Tensor], trainer: MakeTrainer) -> None:
    lit = module(validation_attack=PGD(eps=0.1, steps=1))
    lit.net.double()
    loader = DataLoader(TensorDataset(digits[0][:64], digits[1][:64]), batch_size=32)
    trainer(max_epochs=-1, max_steps=2).fit(lit, loader, loader)
    assert weights(lit).dtype == torch.float64


def test_prediction_gives_logits_in_order(digits: tuple[Tensor, Tensor], trainer: MakeTrainer) -> None:
    lit, (x, y) = module(), digits
    expected = lit.eval()(x[:50])
    for dataset in (TensorDataset(x[:50], y[:50]), x[:50]):
        found = trainer(precision="bf16-mixed").predict(lit, DataLoader(dataset, batch_size=20))
        torch.testing.assert_close(torch.cat(found), expected)
    assert len(trainer().predict(lit, datamodule=data())) > 0
    with pytest.raises(ValueError, match="for uint8 use"):
        trainer().predict(lit, DataLoader((x[:4] * 255).byte()))


@pytest.mark.slow
def test_the_learning_rate_finder_finds_and_sets_the_rate(trainer: MakeTrainer) -> None:
    lit = BaseCNNClassifier(lr=1e-3)
    found = Tuner(trainer()).lr_find(lit, datamodule=data(), num_training=30, early_stop_threshold=None)
    assert lit.lr == found.suggestion() != 1e-3
    run = trainer(max_epochs=1)
    run.fit(lit, datamodule=data())
    group = run.optimizers[0].param_groups[0]
    assert group["max_lr"] == lit.lr


class Scaled(nn.Module):
    def __init__(self, *, in_place: str) -> None:
        super().__init__()
        self.net, self.in_place = SmallCNN(), in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place == "always" or (self.in_place == "training" and self.training):
            return self.net(x.mul_(0.5))
        return self.net(x.mul(0.5))


def test_a_net_that_works_in_place_trains_and_validates_as_one_that_does_not(trainer: MakeTrainer) -> None:
    found = []
    for in_place in ("never", "always"):
        torch.manual_seed(0)
        lit = module(net=Scaled(in_place=in_place), objective=TRADES(PGD(eps=0.1, steps=2)))
        fit = trainer()
        fit.fit(lit, datamodule=data())
        found.append((weights(lit), float(fit.callback_metrics["val/robust_accuracy"])))
    (clean, figure), (ours, same) = found
    assert torch.equal(clean, ours)
    assert figure == same


def test_a_net_that_works_in_place_in_training_alone_is_refused(trainer: MakeTrainer) -> None:
    lit = module(net=Scaled(in_place="training"), objective=Standard())
    with pytest.raises(ValueError, match="Scaled changes its input in place in training"):
        trainer().fit(lit, datamodule=data())


class WithAuxiliary(SmallCNN):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def test_other_outputs_in_training_mode_are_named(trainer: MakeTrainer) -> None:
    lit = module(net=WithAuxiliary(), objective=Standard())
    with pytest.raises(ValueError, match="in training mode WithAuxiliary returns tuple in place of logits"):
        trainer().fit(lit, datamodule=data())


def test_a_net_whose_weights_are_all_frozen_is_refused(trainer: MakeTrainer) -> None:
    lit = module(net=SmallCNN().requires_grad_(False))
    with pytest.raises(ValueError, match="no weight of SmallCNN can be trained"):
        trainer().fit(lit, datamodule=data())


class Rounding(nn.Module):
    """What the error about weights in half precision recommends."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallCNN().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return self.net(x.bfloat16()).float()


def test_a_net_that_rounds_by_itself_gets_images_in_full_precision(trainer: MakeTrainer) -> None:
    lit = module(net=Rounding())
    trainer().validate(lit, datamodule=data(), verbose=False)
    assert lit.predict_step(torch.rand(2, 1, 28, 28).double(), 0).shape == (2, 10)
