"""LogitCorrector: scikit-learn's SVC in PyTorch, and its predictions from the logits of adversarial images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.classifier import attack_view, is_stochastic, undefended
from robustlit.defenses import LogitCorrector, LogitSVC

Digits = Callable[[int, int], tuple[Tensor, Tensor]]


def _logits(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of overlapping classes, so that votes are close."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=generator)
    return 3 * torch.randn(count, classes, generator=generator) + 2.5 * F.one_hot(y, classes), y


@pytest.mark.parametrize(
    ("classes", "gamma", "count"),
    [pytest.param(10, None, 10_000, marks=pytest.mark.slow), (10, 0.3, 1000), (3, None, 1000), (2, None, 1000)],
)
def test_it_predicts_as_scikit_learn_does(classes: int, gamma: float | None, count: int) -> None:
    torch_svc = LogitSVC(penalty=2.0, gamma=gamma)
    svc = torch_svc.fit(*_logits(800, classes, 0))
    z = 1.3 * _logits(count, classes, 1)[0]
    scores = torch_svc(z)
    assert scores.argmax(1).tolist() == svc.predict(z.double().numpy()).tolist()
    decision = torch.as_tensor(svc.decision_function(z.double().numpy()))
    if classes == 2:  # scikit-learn gives one column, positive for the second class
        torch.testing.assert_close(-torch_svc.pairs(z)[:, 0], decision, rtol=0, atol=1e-9)
    else:
        torch.testing.assert_close(scores, decision, rtol=0, atol=1e-9)
        svc.decision_function_shape = "ovo"
        torch.testing.assert_close(
            torch_svc.pairs(z), torch.as_tensor(svc.decision_function(z.double().numpy())), rtol=0, atol=1e-9
        )


def test_ties_of_votes_occur_and_are_broken_as_scikit_learn_breaks_them() -> None:
    torch_svc = LogitSVC()
    svc = torch_svc.fit(*_logits(800, 10, 0))
    z = 1.3 * _logits(4000, 10, 1)[0]
    votes = torch_svc(z).round()
    tied = (votes == votes.amax(1, keepdim=True)).sum(1) > 1
    assert tied.sum() > 20
    svc.break_ties = False
    by_number = torch.as_tensor(svc.predict(z.double().numpy()))
    assert (by_number != torch_svc(z).argmax(1)).any()  # libsvm itself takes the first class of a tie
    assert not (by_number != torch_svc(z).argmax(1))[~tied].any()


def test_its_gradients_are_those_of_finite_differences() -> None:
    svc = LogitSVC()
    svc.fit(*_logits(300, 5, 0))
    z = _logits(6, 5, 1)[0].double()
    z[0] = svc.support_vectors[3]  # where the kernel is 1
    z.requires_grad_(True)
    assert torch.autograd.gradcheck(svc.pairs, z)
    assert torch.autograd.gradcheck(lambda logits: svc.soft(logits, 0.3), z)
    assert torch.autograd.gradcheck(svc, z)


def test_soft_votes_become_whole_ones_as_they_cool() -> None:
    svc = LogitSVC()
    svc.fit(*_logits(300, 5, 0))
    z = _logits(500, 5, 1)[0]
    clear = svc.pairs(z).abs().amin(1) > 1e-3
    assert clear.sum() > 400
    torch.testing.assert_close(svc.soft(z, 1e-5)[clear], svc(z)[clear])
    agree = (svc.soft(z, 0.3).argmax(1) == svc(z).argmax(1)).double().mean()
    assert agree > 0.9


@pytest.fixture
def corrector(fitted: Callable[[str], LogitCorrector]) -> LogitCorrector:
    return fitted("LogitCorrector")


def test_it_corrects_fgsm_examples_that_it_has_not_seen(corrector: LogitCorrector, train_digits: Digits) -> None:
    x, y = train_digits(30_000, 30_300)
    adversarial = FGSM(eps=0.2)(undefended(corrector), x, y, seed=0)
    of_net = float((corrector.net(adversarial).argmax(1) == y).double().mean())
    corrected = float((corrector(adversarial).argmax(1) == y).double().mean())
    assert corrected > of_net + 0.2


def test_its_view_has_gradients_in_spite_of_whole_votes(corrector: LogitCorrector, train_digits: Digits) -> None:
    x, y = train_digits(30_000, 30_050)
    assert not is_stochastic(corrector)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attack_view(corrector)(leaf).amax(1).sum(), leaf)
    assert gradient.flatten(1).abs().sum(1).min() > 0
    assert PGD(eps=0.3, steps=20).run(corrector, x, y, seed=0).success.double().mean() > 0.8


def test_data_that_it_cannot_be_fitted_on_are_refused(net: nn.Module, train_digits: Digits) -> None:
    x, y = train_digits(0, 300)
    with pytest.raises(ValueError, match="class 7 has no example"):
        LogitCorrector(net, eps=(0.1,)).fit(clean=(x[y != 7], y[y != 7]))
    with pytest.raises(ValueError, match="not fitted"):
        LogitCorrector(net)(x[:2])


def test_an_svc_of_another_kind_is_not_taken_over() -> None:
    from sklearn.svm import SVC

    z, y = _logits(100, 3, 0)
    with pytest.raises(ValueError, match="must have an RBF kernel"):
        LogitSVC().take(SVC(kernel="linear", gamma=0.1).fit(z.numpy(), y.numpy()))
    with pytest.raises(ValueError, match="the classes 0 to 2"):
        LogitSVC().take(SVC(gamma=0.1).fit(z.numpy(), (y + 1).numpy()))
    with pytest.raises(ValueError, match="a number as gamma, got 'scale'"):
        LogitSVC().take(SVC().fit(z.numpy(), y.numpy()))
