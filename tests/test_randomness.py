import torch
from hypothesis import given
from hypothesis import strategies as st

from plainres.randomness import augmentation_key, draws, mix, order

SEEDS = st.integers(0, 2**31)


@given(SEEDS, st.integers(0, 500), st.integers(1, 300))
def test_order_is_a_permutation_and_a_function_of_its_arguments(seed: int, epoch: int, images: int) -> None:
    permutation = order(seed, epoch, images)
    assert torch.equal(permutation.sort().values, torch.arange(images))
    assert torch.equal(permutation, order(seed, epoch, images))


def test_order_depends_on_epoch_and_seed() -> None:
    orders = [tuple(order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


@given(SEEDS, st.integers(0, 500), st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_a_draw_does_not_depend_on_other_indices(seed: int, epoch: int, indices: list[int]) -> None:
    together = draws(augmentation_key(seed, epoch), torch.tensor(indices))
    alone = torch.cat([draws(augmentation_key(seed, epoch), torch.tensor([index])) for index in indices])
    assert torch.equal(together, alone)
    assert (together >= 0).all()
    assert (together < 2**62).all()


def test_draws_are_uniform_and_independent_of_the_previous_epoch() -> None:
    index = torch.arange(20000)
    first, second = (draws(augmentation_key(0, epoch), index) for epoch in (0, 1))
    for bit in (0, 1, 20, 33, 61):
        ones = (first >> bit) & 1
        assert abs(ones.double().mean() - 0.5) < 0.02
        assert abs((ones ^ (second >> bit) & 1).double().mean() - 0.5) < 0.02
    assert torch.bincount((first >> 1) % 9, minlength=9).double().std() / (20000 / 9) < 0.05


def test_mix_never_changes() -> None:
    assert mix("order", 0, 0) == 4876581156571347824
    assert mix("a", 1) != mix("a", 2) != mix("b", 2)


def test_the_global_random_state_is_not_used() -> None:
    before = torch.get_rng_state()
    order(0, 0, 10)
    draws(augmentation_key(0, 0), torch.arange(10))
    assert torch.equal(before, torch.get_rng_state())
