"""Tests that need a GPU; skipped without one."""

import copy
import warnings
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import APGD, BIM, FGSM, PGD, Attack, AutoAttack, Square, WorstCase
from robustlit.attacks.draws import Draws
from robustlit.callbacks import AttackSweep
from robustlit.certify import CROWN, IBP, Certificate, RandomizedSmoothing
from robustlit.data import MNIST, ImageFolder, load_mnist
from robustlit.defenses import Smoothed
from robustlit.models import SmallCNN
from robustlit.objectives import NFGSM, AdversarialTraining
from robustlit.training import AveragedWeights, RobustClassifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_draws_have_the_same_bits_as_on_the_cpu() -> None:
    index = torch.arange(50)
    here = Draws(3, index).uniform(torch.empty(50, 1, 28, 28))
    there = Draws(3, index.cuda()).uniform(torch.empty(50, 1, 28, 28, device="cuda"))
    assert torch.equal(there.cpu(), here)


def test_attacks_find_what_they_find_on_the_cpu(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    attacks = [FGSM(eps=0.1), BIM(eps=0.1), PGD(eps=0.1), PGD(eps=1.0, norm="l2", restarts=2)]
    here = evaluate(net, digits, attacks)
    there = evaluate(net.cuda(), digits, attacks)
    for attack in here.attacks:  # the last bits of the arithmetic differ, so a borderline example may
        eps, norm = here.budgets(attack)[0], here.norm_of(attack)
        pair = [e.accuracy(attack=attack, norm=norm, eps=eps) for e in (here, there)]
        assert pair[0] == pytest.approx(pair[1], abs=0.02)


def test_the_quoted_attacks_find_what_they_find_on_the_cpu(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attacks = [AutoAttack(eps=0.1), WorstCase(eps=0.1)]
    here, there = (evaluate(each, (x, y), attacks) for each in (net, copy.deepcopy(net).cuda()))
    for attack in attacks:
        pair = [e.accuracy(attack=attack.name, norm="linf", eps=0.1) for e in (here, there)]
        assert pair[0] == pytest.approx(pair[1], abs=0.03)


@pytest.mark.parametrize("certificate", [IBP(eps=0.02), CROWN(eps=0.02), RandomizedSmoothing(sigma=0.25, n=200)])
def test_certificates_prove_what_they_prove_on_the_cpu(
    certificate: Certificate, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:20], digits[1][:20]
    model = Smoothed(net, 0.25) if isinstance(certificate, RandomizedSmoothing) else net
    here = certificate.run(model, x, y).radius
    there = certificate.run(model.cuda(), x.cuda(), y.cuda()).radius
    assert there.is_cuda
    assert here.any()
    torch.testing.assert_close(there.cpu(), here, rtol=0.02, atol=1e-3)


def test_pictures_in_folders_move_to_the_gpu_once(tmp_path: Path) -> None:
    images, labels = load_mnist()[:2]
    for split, start in (("train", 0), ("test", 300)):
        for number in range(start, start + 60):
            folder = tmp_path / split / str(int(labels[number]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number, 0].numpy()).save(folder / f"{number}.png")
    data = ImageFolder(tmp_path, 28, channels=1, in_memory=True, augment=True, crop_padding=2, val_size=10)
    here = [part.clone() for part in data.tensors("test")]
    module = RobustClassifier(SmallCNN(), NFGSM(FGSM(eps=0.1)), partial(torch.optim.SGD, lr=0.1), num_classes=10)
    trainer = pl.Trainer(accelerator="gpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    assert next(iter(data.train_dataloader()))[0].is_cuda
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, data.tensors("test"), strict=True))


@pytest.mark.parametrize("kind", [PGD, APGD, Square])
def test_few_steps_of_an_attack_wait_for_the_gpu(
    kind: type[Attack], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, x = net.cuda(), digits[0][:8].cuda()
    y = net(x).argmax(1)

    def waits(steps: int) -> int:
        name = "queries" if kind is Square else "steps"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                kind(eps=1e-6, **{name: steps}).run(net, x, y, seed=0)  # so small that every step is taken
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert waits(8) > 0  # and what happens once is not counted
    assert waits(72) - waits(40) <= 32 / 4  # every fourth step looks for finished examples


def test_the_average_of_the_weights_lies_on_the_gpu() -> None:
    average = AveragedWeights(0.9)
    module = RobustClassifier(SmallCNN(), NFGSM(FGSM(eps=0.1)), partial(torch.optim.SGD, lr=0.1), num_classes=10)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[average]
    )
    trainer.fit(module, datamodule=MNIST(batch_size=100, train_size=1000, val_size=100, test_size=100))
    assert average._average_model is not None
    assert {part.device.type for part in average._average_model.module.state_dict().values()} == {"cuda"}


def test_a_seeded_attack_leaves_the_generator_of_the_gpu_alone(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (t.cuda() for t in digits)
    before = torch.cuda.get_rng_state()
    first = PGD(eps=0.1, steps=5)(net.cuda(), x, y, seed=0)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(PGD(eps=0.1, steps=5)(net, x, y, seed=0), first)


def test_it_trains_and_is_attacked_on_the_gpu(tmp_path: Path) -> None:
    data = MNIST(batch_size=100, train_size=4000, val_size=500, test_size=500)
    sweep = AttackSweep({"pgd": PGD(eps=0.1, steps=10)}, folder=tmp_path)
    module = RobustClassifier(
        SmallCNN(),
        AdversarialTraining(PGD(eps=0.1, steps=3)),
        partial(torch.optim.Adam, lr=2e-3),
        num_classes=10,
        validation_attack=PGD(eps=0.1, steps=3),
    )
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[sweep],
    )
    trainer.fit(module, datamodule=data)
    assert next(iter(data.train_dataloader()))[0].is_cuda  # the images were moved once
    trainer.test(module, datamodule=data, verbose=False)
    assert sweep.evaluation is not None
    assert 0.3 < sweep.evaluation.accuracy(eps=0.1) < sweep.evaluation.clean_accuracy
