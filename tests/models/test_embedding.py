"""EmbeddingClassifier: the nearest class embedding names the class."""

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.models import EmbeddingClassifier, SmallCNN


def test_logits_are_distances(digits: tuple[Tensor, Tensor]) -> None:
    t = torch.randn(10, 4)
    model = EmbeddingClassifier(SmallCNN(num_classes=4), embeddings=t, temperature=2.0)
    e = model.embed(digits[0][:8])
    expected = -(e.unsqueeze(1) - t).square().sum(-1) / 2
    torch.testing.assert_close(model(digits[0][:8]), expected)
    torch.testing.assert_close(model.classify(t).argmax(1), torch.arange(10))


def test_one_hot_embeddings_decide_as_the_net_does(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = EmbeddingClassifier(net).eval()
    assert torch.equal(model(digits[0]).argmax(1), net(digits[0]).argmax(1))
    attack = PGD(eps=0.2, steps=10)
    assert torch.equal(attack.run(model, *digits, seed=0).success.sum(), attack.run(net, *digits, seed=0).success.sum())


def test_distances_stay_exact_under_autocast() -> None:
    t = 100 + torch.randn(10, 4)
    model = EmbeddingClassifier(nn.Identity(), embeddings=t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(t)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.argmax(1), torch.arange(10))


def test_embeddings_are_saved_and_not_trained() -> None:
    t = torch.randn(10, 10)
    model = EmbeddingClassifier(SmallCNN(), embeddings=t)
    assert {name for name, _ in model.named_parameters()} == {f"net.{n}" for n, _ in SmallCNN().named_parameters()}
    other = EmbeddingClassifier(SmallCNN())
    other.load_state_dict(model.state_dict())
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": [[1.0]] * 3}, r"num_classes=10, got shape \(3, 1\)"),
        ({"embeddings": torch.ones(10, 4)}, "two classes have the same embedding"),
        ({"embeddings": torch.full((10, 2), float("inf"))}, "must be finite"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1"),
        ({"num_classes": 1}, "num_classes must be an integer of at least 2"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingClassifier(SmallCNN(), **changes)


def test_a_net_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings \(B, 10\), got shape \(2, 7\); build it with num_classes=10"):
        EmbeddingClassifier(SmallCNN(num_classes=7))(torch.rand(2, 1, 28, 28))
