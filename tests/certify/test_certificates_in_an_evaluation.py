"""Certificates through evaluate(): rows, files, text and figure; and the check that compares them with attacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from bounded_nets import images, nets

from robustlit import Evaluation, evaluate
from robustlit.attacks import PGD
from robustlit.certify import CROWNIBP, IBP, RandomizedSmoothing
from robustlit.experiment.stored_recipe import ALLOWED
from robustlit.figures.sandwich import has_sandwich, sandwich_figure
from robustlit.results import EvaluationError
from robustlit.verdict import verdict

EPS = 0.02


@pytest.fixture(scope="module")
def both() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor], Evaluation]:
    net = nets()["cnn"]
    x, y = images(net, 20)
    y[:2] = (y[:2] + 1) % 10
    grid = {"linf": [EPS / 2, EPS]}
    found = evaluate(net, (x, y), [PGD(EPS, steps=10)], grid=grid, batch_size=8, certificates=[IBP(EPS), CROWNIBP(EPS)])
    return net, (x, y), found


def test_certified_lies_below_attacked(both: tuple[object, object, Evaluation]) -> None:
    found = both[2]
    proven = found.certificates
    assert proven is not None
    assert (proven.names, found.attacks) == (["ibp", "crown_ibp"], ["pgd"])
    assert len(proven.table) == 40
    for eps in (EPS / 2, EPS):
        certified = proven.accuracy(eps=eps)
        assert 0 < certified.correct <= found.worst_case(eps=eps).correct
        assert proven.accuracy(eps=eps, certificate="ibp").correct <= certified.correct
    assert proven.accuracy(eps=1e-12).correct <= found.clean_accuracy.correct == 18
    assert "certified" in repr(found)
    with pytest.raises(EvaluationError, match="certified in l2; there are ibp"):
        proven.accuracy(norm="l2", eps=1)


def test_certificates_are_saved_loaded_and_cut(both: tuple[object, object, Evaluation], tmp_path: Path) -> None:
    found = both[2]
    found.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert found.certificates is not None
    assert loaded.certificates is not None
    assert loaded.certificates.table.equals(found.certificates.table)
    part = found.on([3, 4]).certificates
    assert part is not None
    assert sorted(part.table["index"].unique()) == [3, 4]


def test_the_figure_names_the_gap(both: tuple[object, object, Evaluation]) -> None:
    found = both[2]
    assert has_sandwich(found, "linf")
    assert not has_sandwich(found, "l2")
    figure = sandwich_figure(found, "linf", name="net")
    words = " ".join(text.get_text().replace("\n", " ") for text in [*figure.texts, *figure.axes[0].texts])
    assert found.certificates is not None
    gap = 100 * (float(found.worst_case(eps=EPS)) - float(found.certificates.accuracy(eps=EPS)))
    assert f"{gap:.1f} points at" in words


def test_a_net_that_cannot_be_certified_is_an_error_before_any_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    monkeypatch.setattr(PGD, "run", lambda *given, **named: pytest.fail("attacked before the certificates were tried"))
    data = (torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="gelu"):
        evaluate(net, data, [PGD(0.1)], certificates=[IBP(0.1)])
    with pytest.raises(ValueError, match="recipe=smoothing"):
        evaluate(net, data, [PGD(0.1, norm="l2")], certificates=[RandomizedSmoothing()])


def test_what_the_attacks_did_not_search_is_a_note_of_the_figure(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(12, 1, 4, 4)
    found = evaluate(net, (x, net(x).argmax(1)), [PGD(0.1, norm="l2", steps=2)], certificates=[IBP(0.1, norm="l2")])
    figure = sandwich_figure(found, "l2")
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert words.count("No attack here searched for the nearest adversarial example in L2") == 1
    assert not [warning for warning in recwarn if "nearest" in str(warning.message)]


def test_the_verdict_fails_where_something_proven_is_broken(both: tuple[torch.nn.Module, object, Evaluation]) -> None:
    net, data, found = both
    check = next(c for c in verdict(found, net, data, [PGD(EPS, steps=10)]).checks if c.number == 28)
    assert check.status == "PASS"
    assert found.certificates is not None
    sure = int(found.certificates.radii(norm="linf").idxmax())
    at = found.table["index"] == sure
    wrong = found.table.assign(success=found.table["success"] | at, linf=found.table["linf"].mask(at, 0.001))
    false = replace(found, table=wrong)
    check = next(c for c in verdict(false, net, data, [PGD(EPS, steps=10)]).checks if c.number == 28)
    assert check.status == "FAIL"


def test_a_checkpoint_may_name_what_sweep_certified_builds() -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "sweep" / "certified.yaml").read_text())
    named = {recipe["_target_"], *(each["_target_"] for each in recipe["certificates"].values())}
    assert named < ALLOWED["sweep"]
