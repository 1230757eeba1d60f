"""The figures of `robustlit explore`, of measurements made by hand."""

import numpy as np
from parts import all_text

from robustlit.figures.geometry import Seen, neighbours_figure, pairs_figure, slices_figure
from robustlit.results.geometry import Neighbours, Pairs, Slice

NAMES = ("a $dog", "a cat", "a bird")


def plane(*classes: int) -> Slice:
    """Four columns of two classes or more, the right half outside the box."""
    edge = np.linspace(-1, 1, 4)
    grid = np.resize(np.array(classes), (4, 4))
    return Slice(edge, edge, grid, np.tile([True, True, False, False], (4, 1)), {"x": (0.0, 0.0), "adv": (0.5, 0.0)})


def test_slices_name_the_images_the_nets_and_the_classes_that_occur() -> None:
    rgb = np.random.default_rng(0).random((3, 8, 8))
    seen = [Seen(name, {"test image": rgb, "adversarial": rgb}, plane(0, 1), plane(0, -1)) for name in ("one", "two")]
    text = all_text(slices_figure(seen, "Regions", names=NAMES))
    for word in ("Regions", "one", "two", "a $dog", "a cat", "none", "adversarial", "two random directions", "Dotted"):
        assert word in text, word
    assert "a bird" not in text


def test_a_net_of_one_region_is_drawn() -> None:
    slices_figure([Seen("flat", {"x": np.zeros((1, 8, 8))}, plane(2), plane(2))], "t").draw_without_rendering()


def test_pairs_show_their_numbers() -> None:
    distance = np.array([[np.nan, 1.2, np.nan], [2.3, np.nan, 3.4], [4.5, 5.6, np.nan]])
    text = all_text(pairs_figure({"net": Pairs([0, 1, 2], 10 * distance, distance, 1)}, "Pairs", names=NAMES))
    for word in ("1.2", "5.6", "56.0", "a bird", "taken for", "true class"):
        assert word in text, word


def test_neighbours_say_what_share_lies_nearer_to_its_own_class() -> None:
    near, far = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.0, 4.0, 1.0])
    found = Neighbours(np.zeros(4), np.ones(4), near / 2, near, far, near, far, np.minimum(near, far))
    assert found.summary()["share_nearer_to_own_class"] == 0.75
    assert found.summary()["median_size"] == 1.25
    text = all_text(neighbours_figure({"net": found}, "Training images"))
    assert "75 % of adversarial examples lie nearer to their own class" in text
    assert "net, n = 4" in text
