from itertools import islice

import pytest
import torch

from robustlit.data import Batches, BatchIndices, crop_and_flip, load_mnist


def lists(sampler):
    return [batch.tolist() for batch in sampler]


def flat(sampler):
    return [index for batch in lists(sampler) for index in batch]


# --- BatchIndices: evaluation


@pytest.mark.parametrize("size", [10, 35, 36, 37])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_ranks_share_the_batches_of_one_process(size, world_size):
    alone = lists(sampler := BatchIndices(size, 4))
    assert flat(sampler) == list(range(size))
    shards = [lists(BatchIndices(size, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(alone):
        assert shards[number % world_size][number // world_size] == batch
    assert sum(len(shard) for shard in shards) == len(alone)


def test_evaluation_gives_every_process_a_batch():
    # 10 examples are 2 batches of 5; on four processes each gets some, and together each example once.
    shards = [BatchIndices(10, 5, rank=rank, world_size=4) for rank in range(4)]
    assert all(len(shard) >= 1 for shard in shards)
    assert sorted(index for shard in shards for index in flat(shard)) == list(range(10))


def test_evaluation_keeps_the_batches_where_they_suffice():
    assert len(BatchIndices(1001, 501, rank=0, world_size=2)) == 1
    assert lists(BatchIndices(1001, 501, rank=1, world_size=2)) == [list(range(501, 1001))]


# --- BatchIndices: training


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_ranks_are_disjoint_and_equally_long(world_size):
    shards = [BatchIndices(100, 8, shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(flat(shard)) for shard in shards} == {100 // world_size}
    assert len({len(shard) for shard in shards}) == 1
    assert [len(lists(shard)) for shard in shards] == [len(shard) for shard in shards]
    together = [index for shard in shards for index in flat(shard)]
    assert len(set(together)) == len(together) == 100 // world_size * world_size


def test_ranks_follow_the_order_of_one_process():
    order = flat(BatchIndices(101, 8, shuffle=True, seed=5))
    for rank in range(2):
        assert flat(BatchIndices(101, 8, shuffle=True, seed=5, rank=rank, world_size=2)) == order[rank:100:2]


def test_order_depends_on_seed_and_epoch_alone():
    sampler = BatchIndices(100, 8, shuffle=True, seed=3)
    first = flat(sampler)
    assert first != list(range(100))
    assert sorted(first) == list(range(100))
    assert flat(sampler) == first
    sampler.set_epoch(1)
    second = flat(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert flat(sampler) == first
    torch.manual_seed(99)
    assert flat(BatchIndices(100, 8, shuffle=True, seed=3)) == first
    assert flat(BatchIndices(100, 8, shuffle=True, seed=4)) != first
    # The next seed's first epoch is not this seed's second one.
    assert flat(BatchIndices(100, 8, shuffle=True, seed=4)) != second


def test_a_subset_yields_its_own_indices():
    subset = torch.tensor([3, 14, 15, 92, 65])
    assert flat(BatchIndices(subset, 2)) == subset.tolist()
    assert sorted(flat(BatchIndices(subset, 2, shuffle=True))) == sorted(subset.tolist())


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("stop", [1, 5, 12])
def test_resume_yields_exactly_the_remaining_batches_once(shuffle, stop):
    whole = BatchIndices(100, 8, shuffle=shuffle, seed=1)
    whole.set_epoch(2)
    expected = lists(whole)

    stopped = BatchIndices(100, 8, shuffle=shuffle, seed=1)
    stopped.set_epoch(2)
    list(islice(stopped, stop))
    state = stopped.state_dict()
    assert (state["epoch"], state["position"]) == (2, stop)

    resumed = BatchIndices(100, 8, shuffle=shuffle, seed=1)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert len(resumed) == len(whole)
    resumed.set_epoch(2)  # as Lightning does after it loaded the state
    assert lists(resumed) == expected[stop:]
    assert lists(resumed) == expected
    assert resumed.state_dict()["position"] == len(expected)


def test_position_of_a_finished_epoch_does_not_leak_into_the_next():
    sampler = BatchIndices(100, 8, shuffle=True)
    sampler.load_state_dict({"epoch": 0, "position": 13})
    sampler.set_epoch(1)
    assert len(flat(sampler)) == 100
    sampler.set_epoch(2)
    assert sampler.state_dict()["position"] == 0


def test_epoch_set_after_iter_counts():
    # Lightning asks for the iterator before it sets the epoch.
    sampler = BatchIndices(100, 8, shuffle=True)
    iterator = iter(sampler)
    sampler.set_epoch(7)
    late = [batch.tolist() for batch in iterator]
    assert late == lists(sampler)


def test_resume_with_twice_the_processes_keeps_the_share_of_the_epoch():
    one = BatchIndices(128, 8, shuffle=True)
    one.load_state_dict({"epoch": 0, "position": 8, "length": 16})
    two = BatchIndices(128, 8, shuffle=True, rank=0, world_size=2)
    two.load_state_dict(one.state_dict())
    assert two.position == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 10, "batch_size": 0}, "batch_size must be"),
        ({"indices": 10, "batch_size": 2, "seed": -1}, "got -1"),
        ({"indices": 10, "batch_size": 2, "rank": 2, "world_size": 2}, "rank must be"),
        ({"indices": 2, "batch_size": 2, "world_size": 3}, "2 examples cannot be shared among 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchIndices(**arguments)


# --- Batches


@pytest.fixture(scope="module")
def digits():
    images, labels = load_mnist()[:2]
    return images[:500], labels[:500]


def test_x_is_exactly_the_quotient(digits):
    images, labels = digits
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    (x, _, _), *_ = Batches(values, labels[:1], 1)
    expected = torch.tensor([value / 255 for value in range(256)], dtype=torch.float64).float()
    assert torch.equal(x.flatten(), expected)
    for x, y, index in Batches(images, labels, 128, shuffle=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, images[index].float().div(255))
        assert torch.equal(y, labels[index])
        assert index.dtype == torch.int64


def test_index_points_into_the_split_for_a_subset(digits):
    subset = torch.arange(7, 500, 11)
    assert torch.equal(torch.cat([index for _, _, index in Batches(*digits, 10, indices=subset)]), subset)


@pytest.mark.parametrize("augment", [None, crop_and_flip(padding=4)])
def test_batches_resume_bit_for_bit(digits, augment):
    def loader():
        return Batches(*digits, 64, shuffle=True, seed=2, augment=augment)

    whole = loader()
    whole.sampler.set_epoch(1)
    expected = list(whole)

    stopped = loader()
    stopped.sampler.set_epoch(1)
    list(islice(stopped, 3))

    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    for found, wanted in zip(resumed, expected[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_augmentation_changes_with_the_batch_and_the_epoch(digits):
    images, labels = digits
    same = images[:1].repeat(128, 1, 1, 1)
    loader = Batches(same, labels[:1].repeat(128), 64, shuffle=True, augment=crop_and_flip(padding=4))
    first, second = (x for x, _, _ in loader)
    loader.sampler.set_epoch(1)
    later = next(iter(loader))[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)


def test_the_global_generator_and_the_images_are_left_alone(digits):
    state, before = torch.get_rng_state(), digits[0].clone()
    for x, _, _ in Batches(*digits, 64, shuffle=True, augment=crop_and_flip()):
        x.zero_()
    for x, _, _ in Batches(*digits, 500):
        x.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(digits[0], before)


def test_normalised_images_are_refused(digits):
    images, labels = digits
    with pytest.raises(ValueError, match="must be uint8"):
        Batches(images.float(), labels, 10)
    with pytest.raises(ValueError, match="labels must be int64"):
        Batches(images, labels[:-1], 10)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("examples", [1, 2, 3, 8, 9, 10, 17, 18])
def test_no_training_batch_has_one_example_if_there_are_more(examples: int, world_size: int):
    if examples < world_size:
        return
    samplers = [BatchIndices(examples, 4, shuffle=True, rank=r, world_size=world_size) for r in range(world_size)]
    each = examples // world_size
    for sampler in samplers:
        sizes = [len(batch) for batch in sampler]
        assert len(sizes) == len(sampler)
        assert sum(sizes) == each
        assert min(sizes) > 1 or each == 1
        assert max(sizes) <= 5
    assert [len(batch) for batch in BatchIndices(9, 4)] == [4, 4, 1]  # in evaluation nothing changes
