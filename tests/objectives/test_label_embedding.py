"""Soft targets from class similarity, their control, and regression to class embeddings."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.data import load_mnist
from robustlit.models import EmbeddingClassifier, SmallCNN
from robustlit.objectives import (
    EmbeddingRegression,
    LabelSmoothing,
    Objective,
    SoftLabelEmbedding,
    class_mean_similarity,
    confusion_similarity,
    similarity_embeddings,
)
from robustlit.objectives.class_similarity import logits_of
from robustlit.objectives.label_embedding import target_rows

THREE = [[4.0, 2.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 3.0]]
TEN = (torch.eye(10) + 0.1).tolist()


@pytest.fixture(scope="module")
def training_digits() -> tuple[Tensor, Tensor]:
    images, labels, _, _ = load_mnist()
    return images[20_000:21_000].float() / 255, labels[20_000:21_000].clone()


def test_target_rows_by_hand() -> None:
    rows = target_rows(torch.tensor(THREE, dtype=torch.float64), temperature=1.0, floor=0.5)
    torch.testing.assert_close(rows[0], torch.tensor([2 / 3, 1 / 3, 0.0]).double())  # above the floor: untouched
    torch.testing.assert_close(rows[1], torch.tensor([1 / 6, 0.5, 1 / 3]).double())  # raised, the others in proportion
    torch.testing.assert_close(rows[2], torch.tensor([0.0, 0.0, 1.0]).double())
    cooler = target_rows(torch.tensor(THREE, dtype=torch.float64), temperature=0.5, floor=0.01)
    torch.testing.assert_close(cooler[0], torch.tensor([0.8, 0.2, 0.0]).double())


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("floor", [0.2, 0.9, 1.0])
def test_target_rows_are_probabilities_with_a_floor(temperature: float, floor: float) -> None:
    rows = target_rows(torch.rand(10, 10).double() + 1e-9, temperature, floor)
    torch.testing.assert_close(rows.sum(1), torch.ones(10).double())
    assert (rows >= 0).all()
    assert (rows.diagonal() >= floor - 1e-12).all()


def test_the_loss_is_the_cross_entropy_against_the_rows(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective: Objective = SoftLabelEmbedding(TEN, temperature=2.0, floor=0.6)
    output = objective(net, x, y)
    rows = target_rows(torch.tensor(TEN, dtype=torch.float64), 2.0, 0.6)[y].float()
    expected = -(rows * net(x).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output["loss"], expected)
    assert torch.equal(output["logits"], net(x))
    one_hot = SoftLabelEmbedding(TEN, floor=1.0)(net, x, y)["loss"]
    torch.testing.assert_close(one_hot, F.cross_entropy(net(x), y))


def test_label_smoothing_is_the_even_similarity(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    smooth = LabelSmoothing(0.2)(net, x, y)
    expected = 0.8 * F.cross_entropy(net(x), y) - 0.2 * net(x).log_softmax(1).mean()
    torch.testing.assert_close(smooth["loss"], expected)
    even = SoftLabelEmbedding(torch.ones(10, 10).tolist(), floor=0.82)(net, x, y)
    torch.testing.assert_close(smooth["loss"], even["loss"])


def test_a_floor_of_label_smoothing_holds_for_any_number_of_classes(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    smoothing = LabelSmoothing(floor=0.9)
    for classes in (2, 10, 100):
        amount = smoothing.amount_for(classes)
        assert 1 - amount + amount / classes == pytest.approx(0.9)
    assert torch.equal(smoothing(net, *digits)["loss"], LabelSmoothing(1 / 9)(net, *digits)["loss"])


def test_confusion_finds_similar_digits(net: nn.Module, training_digits: tuple[Tensor, Tensor]) -> None:
    modes = net.train()
    similarity = confusion_similarity(net, *training_digits)
    assert modes.training  # as it was
    torch.testing.assert_close(similarity.sum(1), torch.ones(10).double())
    assert (similarity.argmax(1) == torch.arange(10)).all()
    four = similarity[4].clone()
    four[4] = 0
    assert four.argmax() == 9
    x, y = training_digits
    torch.testing.assert_close(similarity[3], net.eval()(x[y == 3]).double().softmax(1).mean(0).detach())


def test_class_means_by_hand() -> None:
    features = torch.tensor([[0.0], [2.0], [3.0], [5.0], [9.0]])
    similarity = class_mean_similarity(features, torch.tensor([0, 0, 1, 1, 2]))  # means 1, 4, 9; mean square 98 / 3
    expected = torch.exp(-torch.tensor([[0.0, 9.0, 64.0], [9.0, 0.0, 25.0], [64.0, 25.0, 0.0]]).double() * 3 / 98)
    torch.testing.assert_close(similarity, expected)


@pytest.mark.parametrize("source", ["confusion", "logits", "pixels"])
def test_a_prepared_matrix_is_a_similarity_again(
    source: str, net: nn.Module, training_digits: tuple[Tensor, Tensor], digits: tuple[Tensor, Tensor]
) -> None:
    objective = SoftLabelEmbedding(source, temperature=1.5, floor=0.7)
    assert objective.needs_data
    assert objective.needs_reference == (source != "pixels")
    with pytest.raises(ValueError, match="call prepare"):
        objective(net, *digits)
    objective.prepare(net if objective.needs_reference else None, *training_digits)
    assert not objective.needs_data
    assert not objective.needs_reference
    assert objective.similarity_matrix is not None
    again = SoftLabelEmbedding(objective.similarity_matrix.tolist(), temperature=1.5, floor=0.7)
    assert torch.equal(again(net, *digits)["loss"], objective(net, *digits)["loss"])
    assert not torch.equal(objective(net, *digits)["loss"], F.cross_entropy(net(digits[0]), digits[1]))
    copied = copy.deepcopy(objective)
    assert torch.equal(copied(net, *digits)["loss"], objective(net, *digits)["loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "cosine"}, "one of confusion, logits, pixels, got 'cosine'"),
        ({"similarity": [[1.0, 0.0]]}, r"square matrix .* got shape \(1, 2\)"),
        ({"similarity": [[1.0, -0.5], [0.0, 1.0]]}, "at least 0, found -0.5"),
        ({"similarity": [[1.0, float("nan")], [0.0, 1.0]]}, "finite and at least 0, found nan"),
        ({"similarity": [[1.0, 0.0], [0.3, 0.0]]}, r"similarity\[1\]\[1\] is 0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0"),
        ({"floor": 0.0}, r"floor must be a probability in \(0, 1\], got 0"),
        ({"floor": 1.1}, r"floor must be a probability in \(0, 1\], got 1.1"),
    ],
)
def test_bad_numbers(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftLabelEmbedding(**{"similarity": TEN, **change})


def test_bad_use(net: nn.Module, digits: tuple[Tensor, Tensor], training_digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="for 3 classes, the classifier has 10"):
        SoftLabelEmbedding(THREE)(net, *digits)
    with pytest.raises(ValueError, match="needs a reference classifier"):
        SoftLabelEmbedding("confusion").prepare(None, *training_digits)
    with pytest.raises(ValueError, match="nothing to prepare"):
        SoftLabelEmbedding(TEN).prepare(net, *training_digits)
    x, y = training_digits
    with pytest.raises(ValueError, match=r"there is none of \[3\]"):
        SoftLabelEmbedding("confusion").prepare(net, x[y != 3], y[y != 3])
    with pytest.raises(ValueError, match="same mean feature"):
        class_mean_similarity(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"amount must be a probability in \[0, 1\), got 1"):
        LabelSmoothing(1.0)
    with pytest.raises(ValueError, match=r"floor must be a probability in \(0, 1\], got 0"):
        LabelSmoothing(floor=0)
    with pytest.raises(ValueError, match=r"floor=0.05 is no more than the other of 10 classes get"):
        LabelSmoothing(floor=0.05)(net, *digits)


def test_embeddings_of_a_similarity_have_it_as_inner_products() -> None:
    factor = torch.randn(6, 6).double()
    similarity = factor @ factor.T
    t = similarity_embeddings(similarity)
    torch.testing.assert_close(t @ t.T, similarity)


def test_regression_is_the_distance_to_the_class_embedding(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    t = torch.randn(10, 5)
    model = EmbeddingClassifier(SmallCNN(num_classes=5), embeddings=t.tolist(), temperature=0.5)
    output = EmbeddingRegression()(model, x, y)
    torch.testing.assert_close(output["loss"], (model.net(x) - t[y]).square().sum(1).mean())
    torch.testing.assert_close(output["logits"], model(x))


def test_regression_needs_embeddings(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"got SmallCNN; wrap it: robustlit\.models\.EmbeddingClassifier"):
        EmbeddingRegression()(net, *digits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda net: (net, SoftLabelEmbedding(TEN, floor=0.8)),
        lambda net: (net, LabelSmoothing(0.1)),
        lambda net: (EmbeddingClassifier(net), EmbeddingRegression()),
    ],
    ids=["soft", "smooth", "regression"],
)
def test_they_learn_digits(make: Callable[[nn.Module], tuple[nn.Module, Objective]]) -> None:
    images, labels, _, _ = load_mnist()
    model, objective = make(SmallCNN())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for start in range(0, 6000, 100):
        optimizer.zero_grad()
        x, y = images[start : start + 100].float() / 255, labels[start : start + 100]
        objective(model, x, y)["loss"].backward()
        optimizer.step()
    x, y = images[50_000:51_000].float() / 255, labels[50_000:51_000]
    assert (model(x).argmax(1) == y).float().mean() > 0.85


def test_a_reference_sees_fewer_large_images_at_once() -> None:
    seen: list[int] = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))
    net.register_forward_hook(lambda module, given, answer: seen.append(len(given[0])))
    assert logits_of(net, torch.rand(1, 3, 224, 224).expand(40, -1, -1, -1)).shape == (40, 2)
    assert max(seen) == 32
