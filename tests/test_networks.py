import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from plainres.blocks import BasicBlock
from plainres.describe import describe
from plainres.errors import InputError
from plainres.networks import CifarNet, initialise
from plainres.shortcuts import Identity, Plain, Projection, ProjectionAll, ShortcutFactory

SHORTCUTS = [Plain, Identity, Projection, ProjectionAll]

# depth: (parameters, multiply-adds) of plain and option A, of B, of C; closed forms, checked against published counts
COUNTS = {
    20: ((269722, 40551040), (272474, 40813184), (283962, 42648192)),
    32: ((464154, 68862592), (466906, 69124736), (489594, 72532608)),
    44: ((658586, 97174144), (661338, 97436288), (695226, 102417024)),
    56: ((853018, 125485696), (855770, 125747840), (900858, 132301440)),
    110: ((1727962, 252887680), (1730714, 253149824), (1826202, 266781312)),
    1202: ((19421274, 2829238912), (19424026, 2829501056), (20538714, 2986263168)),
}


@pytest.mark.parametrize("depth", COUNTS)
@pytest.mark.parametrize(("shortcut", "column"), [(Plain, 0), (Identity, 0), (Projection, 1), (ProjectionAll, 2)])
def test_counts_are_the_published_ones(depth: int, shortcut: ShortcutFactory, column: int) -> None:
    with torch.device("meta"):
        found = describe(CifarNet(3, 10, depth, 16, shortcut), (3, 32, 32))
    assert (found.parameters, found.multiply_adds) == COUNTS[depth][column]


@settings(max_examples=25, deadline=None)
@given(
    shortcut=st.sampled_from(SHORTCUTS),
    n=st.integers(1, 4),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    size=st.integers(5, 12),
    classes=st.integers(2, 11),
)
def test_images_become_logits(
    shortcut: ShortcutFactory, n: int, width: int, channels: int, *, size: int, classes: int
) -> None:
    network = CifarNet(channels, classes, 6 * n + 2, width, shortcut)
    images = torch.randn(3, channels, size, size, generator=Generator().manual_seed(0))
    logits = network(images)
    logits.square().mean().backward()
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    weighted = [m for name, m in network.named_modules() if "shortcut" not in name.split(".")]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in weighted) == 6 * n + 2


@given(st.integers(-3, 130))
def test_a_depth_that_does_not_fit_names_the_nearest(depth: int) -> None:
    if depth >= 8 and depth % 6 == 2:
        return
    with pytest.raises(InputError, match=r"6n\+2") as caught, torch.device("meta"):
        CifarNet(3, 10, depth, 16, Plain)
    below, above = (int(word) for word in str(caught.value).rsplit("are ", 1)[1].split(" and "))
    assert above == below + 6
    assert below % 6 == 2
    assert depth < 8 or below < depth < above


def test_depth_21_and_width_0() -> None:
    with pytest.raises(InputError, match=r"model.depth is 21; it must be 6n\+2 .* 20 and 26"):
        CifarNet(3, 10, 21, 16, Plain)
    with pytest.raises(InputError, match=r"model.width is 0"):
        CifarNet(3, 10, 20, 0, Plain)


def initialised(shortcut: ShortcutFactory, seed: int = 0, depth: int = 20) -> nn.Module:
    network = CifarNet(3, 10, depth, 16, shortcut)
    initialise(network, Generator().manual_seed(seed))
    return network


def test_plain_and_identity_have_equal_keys_and_weights() -> None:
    plain, identity = initialised(Plain).state_dict(), initialised(Identity).state_dict()
    assert list(plain) == list(identity)
    assert all(torch.equal(plain[key], identity[key]) for key in plain)


@pytest.mark.parametrize("shortcut", [Identity, Projection, ProjectionAll])
def test_one_seed_gives_one_backbone(shortcut: ShortcutFactory) -> None:
    plain, other = initialised(Plain).state_dict(), initialised(shortcut).state_dict()
    assert set(plain) <= set(other)
    assert all("shortcut" in key for key in set(other) - set(plain))
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    assert not torch.equal(plain["stem.conv.weight"], initialised(Plain, seed=1).state_dict()["stem.conv.weight"])


def test_he_initialisation() -> None:
    network = initialised(ProjectionAll, depth=56)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.1)
            assert not module.bias.any()


def test_plain_is_the_residual_branch_alone() -> None:
    block = BasicBlock(4, 8, 2, Plain).eval()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), block.residual(x).relu())


@pytest.mark.parametrize("join", [lambda x, fx: x, lambda x, fx: fx.sigmoid() * x, lambda x, fx: (fx + x).exp()])
def test_a_shortcut_may_return_its_input_or_keep_what_it_returns(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor, fx: Tensor) -> Tensor:
            return join(x, fx)

    block = BasicBlock(4, 4, 1, lambda in_channels, out_channels, stride: Own())
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    block(block(x)).sum().backward()
    assert x.grad is not None


def test_identity_adds_its_input() -> None:
    block = BasicBlock(4, 4, 1, Identity).eval()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), (block.residual(x) + x).relu())


@given(st.integers(1, 6), st.integers(0, 7), st.integers(1, 3))
def test_option_a_subsamples_and_pads_with_zeros(channels: int, more: int, stride: int) -> None:
    x = torch.randn(2, channels, 7, 7)
    fx = torch.zeros(2, channels + more, math.ceil(7 / stride), math.ceil(7 / stride))
    y = Identity(channels, channels + more, stride)(x, fx)
    before = more // 2
    assert torch.equal(y[:, before : before + channels], x[:, :, ::stride, ::stride])
    assert not y[:, :before].any()
    assert not y[:, before + channels :].any()


def test_option_b_projects_only_where_the_shape_changes() -> None:
    assert isinstance(Projection(4, 4, 1), Identity)
    assert isinstance(Projection(4, 8, 1), ProjectionAll)
    assert isinstance(Projection(4, 4, 2), ProjectionAll)


def test_projection_is_a_normalised_1x1_convolution() -> None:
    shortcut = ProjectionAll(4, 8, 2).eval()
    x, fx = torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)
    direct = torch.einsum("oc,nchw->nohw", shortcut.conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(shortcut(x, fx), fx + direct / math.sqrt(1 + 1e-5))


def test_a_published_block_written_out() -> None:
    """The network equals one built here from plain torch calls, following section 4.2 of the paper."""
    network = initialised(Identity, depth=8).eval()
    weights = network.state_dict()
    images = torch.randn(2, 3, 32, 32)

    def conv_bn(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        x = nn.functional.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        return nn.functional.batch_norm(
            x,
            weights[f"{norm}.running_mean"],
            weights[f"{norm}.running_var"],
            weights[f"{norm}.weight"],
            weights[f"{norm}.bias"],
        )

    x = conv_bn(images, "stem.conv", "stem.norm").relu()
    for stage, stride in enumerate((1, 2, 2)):
        block = partial("stages.{}.0.residual.{}".format, stage)
        fx = conv_bn(x, block("conv1"), block("norm1"), stride).relu()
        fx = conv_bn(fx, block("conv2"), block("norm2"))
        if stride == 2:
            half = torch.zeros(2, x.shape[1] // 2, x.shape[2] // 2, x.shape[3] // 2)
            x = torch.cat([half, x[:, :, ::2, ::2], half], 1)
        x = (fx + x).relu()
    logits = x.mean((2, 3)) @ weights["head.linear.weight"].T + weights["head.linear.bias"]
    torch.testing.assert_close(network(images), logits, atol=1e-5, rtol=1e-5)
