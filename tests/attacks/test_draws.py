import pytest
import torch
from torch import Tensor

from robustlit.attacks.draws import Draws

LIKE = torch.zeros(500, 1, 5, 8)


def _uniform(seed: int | None, index: Tensor, times: int = 1) -> Tensor:
    draws = Draws(seed, index)
    for _ in range(times):
        numbers = draws.uniform(torch.zeros(len(index), 1, 5, 8))
    return numbers


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs())


@pytest.mark.parametrize("seed", [0, 1, -3, 2**63 + 5])
def test_uniform_numbers_are_uniform(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    u = _uniform(seed, torch.arange(500))  # 20 000 numbers: one standard error of the mean is 0.002
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.009
    assert abs(u.var() - 1 / 12) < 0.003
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(u[:, 0, 0, 0].numpy(), "uniform").pvalue > 1e-3  # one pixel over examples
    assert len(u.unique()) > 19_900  # 24 bits: about a dozen of 20 000 coincide


def test_normal_numbers_have_the_moments_of_a_normal() -> None:
    stats = pytest.importorskip("scipy.stats")
    z = Draws(4, torch.arange(500)).normal(LIKE)
    assert abs(z.mean()) < 0.03
    assert abs(z.var() - 1) < 0.04
    assert abs((z**3).mean()) < 0.1
    assert abs((z**4).mean() - 3) < 0.25
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert z.isfinite().all()


def test_examples_seeds_draws_and_pixels_are_unrelated() -> None:
    index = torch.arange(500)
    first = _uniform(0, index)
    # 20 000 pairs: a correlation of 0.03 is four standard errors.
    assert _correlation(first, _uniform(1, index)) < 0.03
    assert _correlation(first, _uniform(2**32, index)) < 0.03
    assert _correlation(first, _uniform(0, index, times=2)) < 0.03
    assert _correlation(first, _uniform(0, index + 500)) < 0.03
    assert _correlation(first[:-1], first[1:]) < 0.03
    assert _correlation(first[..., :-1], first[..., 1:]) < 0.03
    assert _correlation(_uniform(1, index[:-1]), _uniform(0, index[1:])) < 0.03  # seed + 1 is not index + 1
    normal = Draws(0, index)
    assert _correlation(normal.normal(LIKE), normal.normal(LIKE)) < 0.03


def test_numbers_depend_on_seed_and_index_alone() -> None:
    index = torch.tensor([7, 3, 10**12, 3, 0])
    together = _uniform(9, index)
    for row, number in enumerate(index):
        assert torch.equal(_uniform(9, number.view(1))[0], together[row])
    assert torch.equal(together[1], together[3])  # same example, same numbers
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(_uniform(9, index[order]), together[order])
    torch.manual_seed(123)
    assert torch.equal(_uniform(9, index), together)
    assert torch.equal(_uniform(9, index.to(torch.int32)[[0, 1]]), together[:2])


def test_select_goes_on_where_the_whole_stands() -> None:
    whole, keep = Draws(2, torch.arange(6)), torch.tensor([4, 1])
    whole.uniform(torch.zeros(6, 1, 5, 8))
    part, twice = whole.select(keep), whole.select(torch.tensor([4, 1, 5])).select(torch.tensor([0, 1]))
    expected = whole.normal(torch.zeros(6, 3, 4))[keep]
    assert torch.equal(part.normal(torch.zeros(2, 3, 4)), expected)
    assert torch.equal(twice.normal(torch.zeros(2, 3, 4)), expected)
    # Drawing from the part did not move the whole on.
    assert torch.equal(part.uniform(torch.zeros(2, 3)), whole.uniform(torch.zeros(6, 3))[keep])


def test_any_whole_number_is_a_seed() -> None:
    np = pytest.importorskip("numpy")
    seeds = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 2, -(2**62)]
    numbers = [_uniform(seed, torch.arange(3)) for seed in seeds]
    for i in range(len(seeds)):
        for j in range(i):
            assert not torch.equal(numbers[i], numbers[j])
    assert torch.equal(_uniform(np.int64(2**31), torch.arange(3)), numbers[3])
    with pytest.raises(TypeError):
        Draws(1.5, torch.arange(3))


def test_dtype_and_shape_follow_the_images() -> None:
    for dtype in (torch.float32, torch.float64):
        like = torch.zeros(3, 2, 4, dtype=dtype)
        for numbers in (Draws(0, torch.arange(3)).uniform(like), Draws(0, torch.arange(3)).normal(like)):
            assert numbers.dtype == dtype
            assert numbers.shape == like.shape


def test_with_a_seed_the_generator_rests_and_without_it_is_used() -> None:
    state = torch.get_rng_state()
    seeded = Draws(0, torch.arange(4))
    seeded.uniform(LIKE[:4])
    seeded.normal(LIKE[:4])
    assert torch.equal(torch.get_rng_state(), state)

    def free() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        draws = Draws(None, torch.arange(4)).select(torch.tensor([0, 2]))
        return draws.uniform(LIKE[:2]), draws.normal(LIKE[:2])

    (u, z), (again_u, again_z) = free(), free()
    assert torch.equal(u, again_u)
    assert torch.equal(z, again_z)
    assert not torch.equal(Draws(None, torch.arange(2)).uniform(LIKE[:2]), u)


def test_a_fork_does_not_depend_on_how_many_were_drawn_before() -> None:
    like = torch.empty(3, 50)
    fresh, used = Draws(4, torch.arange(3)), Draws(4, torch.arange(3))
    used.uniform(like)
    for number in (0, 1, 7):
        assert torch.equal(fresh.fork(number).uniform(like), used.fork(number).uniform(like))
    streams = [fresh.fork(number).uniform(like) for number in range(4)] + [Draws(4, torch.arange(3)).uniform(like)]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert ((one - other).abs() > 1e-3).float().mean() > 0.9
    alone = fresh.select(torch.tensor([2])).fork(1).uniform(like[:1])
    assert torch.equal(alone[0], streams[1][2])
    assert Draws(None, torch.arange(3)).fork(1).seed is None
