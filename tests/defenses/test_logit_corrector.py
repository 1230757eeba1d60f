"""LogitCorrector: scikit-learn's SVC in PyTorch, and what it reads off the logits of adversarial images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.classifier import attack_view, is_stochastic, undefended
from robustlit.data import load_mnist
from robustlit.defenses import LogitCorrector, LogitSVC
from robustlit.models import SmallCNN


def _images(first: int, last: int) -> tuple[Tensor, Tensor]:
    images, labels, _, _ = load_mnist()
    return images[first:last].float() / 255, labels[first:last].clone()


def _logits(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits whose classes overlap, so that votes are close."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=generator)
    return 3 * torch.randn(count, classes, generator=generator) + 2.5 * F.one_hot(y, classes), y


@pytest.mark.parametrize(("classes", "gamma"), [(10, None), (10, 0.3), (3, None), (2, None)])
def test_it_answers_as_scikit_learn_does(classes: int, gamma: float | None) -> None:
    torch_svc = LogitSVC(penalty=2.0, gamma=gamma)
    svc = torch_svc.fit(*_logits(800, classes, 0))
    z = 1.3 * _logits(10_000, classes, 1)[0]
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
    z = 1.3 * _logits(10_000, 10, 1)[0]
    votes = torch_svc(z).round()
    tied = (votes == votes.amax(1, keepdim=True)).sum(1) > 1
    assert tied.sum() > 50
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


@pytest.fixture(scope="module")
def fitted(trained_state: dict[str, Tensor]) -> LogitCorrector:
    net = SmallCNN()
    net.load_state_dict(trained_state)
    corrector = LogitCorrector(net.eval(), penalty=10.0, examples=800)
    corrector.fit(clean=_images(0, 2000), held_out=_images(20_000, 20_100), seed=0)
    return corrector


def test_it_corrects_fgsm_examples_that_it_has_not_seen(fitted: LogitCorrector) -> None:
    x, y = _images(30_000, 30_300)
    adversarial = FGSM(eps=0.2)(undefended(fitted), x, y, seed=0)
    of_net = float((fitted.net(adversarial).argmax(1) == y).double().mean())
    corrected = float((fitted(adversarial).argmax(1) == y).double().mean())
    assert corrected > of_net + 0.2


def test_its_view_lets_an_attack_through_whole_votes(fitted: LogitCorrector) -> None:
    x, y = _images(30_000, 30_050)
    assert undefended(fitted) is fitted.net
    assert not is_stochastic(fitted)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attack_view(fitted)(leaf).amax(1).sum(), leaf)
    assert gradient.flatten(1).abs().sum(1).min() > 0
    assert PGD(eps=0.3, steps=20).run(fitted, x, y, seed=0).success.double().mean() > 0.8


def test_its_state_restores_it_completely(fitted: LogitCorrector, digits: tuple[Tensor, Tensor]) -> None:
    other = LogitCorrector(SmallCNN(), penalty=10.0, examples=800)
    other.load_state_dict(copy.deepcopy(fitted.state_dict()))
    assert torch.equal(other.eval()(digits[0]), fitted(digits[0]))
    assert torch.equal(copy.deepcopy(fitted)(digits[0][:1]), fitted(digits[0][:1]))
    single = copy.deepcopy(fitted).to(torch.float32)
    assert (single(digits[0]).argmax(1) == fitted(digits[0]).argmax(1)).double().mean() > 0.98


def test_data_that_it_cannot_be_fitted_on_are_refused(net: nn.Module) -> None:
    x, y = _images(0, 300)
    with pytest.raises(ValueError, match="class 7 has no example"):
        LogitCorrector(net, eps=(0.1,)).fit(clean=(x[y != 7], y[y != 7]))
    adversarial = FGSM(eps=0.3)(net, x, y, seed=0)
    with pytest.raises(ValueError, match="LogitCorrector is fitted on clean images"):
        LogitCorrector(net).fit(clean=(adversarial, y))
    with pytest.raises(ValueError, match="not fitted"):
        LogitCorrector(net)(x[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": 0.0}, "penalty must be positive"),
        ({"gamma": -1.0}, "gamma must be positive"),
        ({"eps": ()}, "at least one budget"),
        ({"eps": (0.1, 8)}, "did you mean 8/255"),
        ({"examples": 0}, "examples must be a whole number"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_hyper_parameters_are_refused(net: nn.Module, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitCorrector(net, **arguments)  # type: ignore[arg-type]


def test_an_svc_of_another_kind_is_not_taken_over() -> None:
    from sklearn.svm import SVC

    z, y = _logits(100, 3, 0)
    with pytest.raises(ValueError, match="must have an RBF kernel"):
        LogitSVC().take(SVC(kernel="linear").fit(z.numpy(), y.numpy()))
    with pytest.raises(ValueError, match="the classes 0 to 2"):
        LogitSVC().take(SVC().fit(z.numpy(), (y + 1).numpy()))
