"""Tests that need a GPU; skipped without one."""

from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.draws import Draws
from robustlit.callbacks import AttackSweep
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import AdversarialTraining
from robustlit.training import RobustClassifier

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
