import io
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from plainres.errors import InputError
from plainres.models.blocks import Block, BlockSpec, LayerOrder
from plainres.models.initialisation import delta_orthogonal, he_fan_in, he_fan_out, orthogonal
from plainres.models.networks import MLP, CifarNet, ImageNet
from plainres.models.shortcuts import Identity, Plain, Projection, ProjectionAll, ShortcutFactory, Wide
from plainres.models.summary import describe
from support.shipped import BLOCKS, NORMS, ORDERS, SHORTCUTS

BOTTLENECK = BlockSpec(kernels=[1, 3, 1], expansion=4, stride_in=2)
PREACTIVATION = ORDERS["full_preactivation"]

# depth: (parameters, multiply-adds) for plain and option A, for B, and for C; from closed forms, which agree with the
# published counts
COUNTS = {
    8: ((75290, 12239488), (78042, 12501632), (78330, 12763776)),
    14: ((172506, 26395264), (175258, 26657408), (181146, 27705984)),
    26: ((366938, 54706816), (369690, 54968960), (386778, 57590400)),
    38: ((561370, 83018368), (564122, 83280512), (592410, 87474816)),
    50: ((755802, 111329920), (758554, 111592064), (798042, 117359232)),
    164: ((2602906, 380289664), (2605658, 380551808), (2751546, 401261184)),
    20: ((269722, 40551040), (272474, 40813184), (283962, 42648192)),
    32: ((464154, 68862592), (466906, 69124736), (489594, 72532608)),
    44: ((658586, 97174144), (661338, 97436288), (695226, 102417024)),
    56: ((853018, 125485696), (855770, 125747840), (900858, 132301440)),
    110: ((1727962, 252887680), (1730714, 253149824), (1826202, 266781312)),
    1202: ((19421274, 2829238912), (19424026, 2829501056), (20538714, 2986263168)),
}
# depth: (parameters, multiply-adds) for plain (for 18 and 34 also A), for B, and for C; those for B are torchvision's
IMAGENET_COUNTS = {
    18: ((11515688, 1794805760), (11689512, 1814073344), (12043816, 1878298624)),
    34: ((21623848, 3644493824), (21797672, 3663761408), (22716840, 3830747136)),
    50: ((22780456, 3729522688), (25557032, 4089184256), (40128552, 6555435008)),
    101: ((41772584, 7441743872), (44549160, 7801405440), (76981288, 13761511424)),
    152: ((57416232, 11153965056), (60192808, 11513626624), (107335720, 20967587840)),
}
# multiply-adds of the original bottlenecks, whose first 1x1 layer has the stride
# (3.8, 7.6 and 11.3 billion in He et al. 2015, Table 1)
ORIGINAL_STRIDE = {50: 3857973248, 101: 7570194432, 152: 11282415616}
OPTIONS = [(Plain, 0), (Identity, 0), (Projection, 1), (ProjectionAll, 2)]


def counts(make: Callable[[], nn.Module], size: int = 32) -> tuple[int, int]:
    with torch.device("meta"):
        description = describe(make(), (3, size, size))
    return description.parameters, description.multiply_adds


@pytest.mark.parametrize("depth", COUNTS)
@pytest.mark.parametrize(("shortcut", "column"), OPTIONS)
def test_counts_match_the_published_ones(depth: int, shortcut: ShortcutFactory, column: int) -> None:
    parameters, multiply_adds = COUNTS[depth][column]
    assert counts(lambda: CifarNet(3, 10, depth, 16, shortcut)) == (parameters, multiply_adds)
    if depth < 100:
        with_100_classes = counts(lambda: CifarNet(3, 100, depth, 16, shortcut))
        assert with_100_classes == (parameters + 5850, multiply_adds + 5760)


@pytest.mark.parametrize("depth", IMAGENET_COUNTS)
@pytest.mark.parametrize(("shortcut", "column"), OPTIONS)
def test_imagenet_counts_match_torchvision_and_the_published_ones(
    depth: int, shortcut: ShortcutFactory, column: int
) -> None:
    block = BlockSpec() if depth < 50 else BOTTLENECK
    if shortcut is not Identity or depth < 50:
        actual = counts(lambda: ImageNet(3, 1000, depth, 64, shortcut, block=block), 224)
        assert actual == IMAGENET_COUNTS[depth][column]


@pytest.mark.parametrize("depth", ORIGINAL_STRIDE)
def test_original_stride_gives_the_papers_multiply_adds(depth: int) -> None:
    block = BlockSpec(kernels=[1, 3, 1], expansion=4, stride_in=1)
    actual = counts(lambda: ImageNet(3, 1000, depth, 64, Projection, block=block), 224)
    assert actual == (IMAGENET_COUNTS[depth][1][0], ORIGINAL_STRIDE[depth])


@pytest.mark.parametrize(
    ("depth", "kernels", "expansion", "width", "parameters"),
    [
        (164, [1, 3, 1], 4, 16, 1703258),  # ResNet-164 with pre-activation, from its authors' logs
        (1001, [1, 3, 1], 4, 16, 10327706),  # about the 10.2M of He et al. 2016
        (38, [3, 3], 1, 32, 2243546),  # WRN-40-2: 2.2M
        (38, [3, 3], 1, 64, 8949210),  # WRN-40-4, from its authors' log
        (26, [3, 3], 1, 160, 36479194),  # WRN-28-10: 36.5M
        (26, [3, 3], 1, 32, 1467610),  # block types of the Wide ResNet paper with k = 2: B(3,3), 1.5M
        (56, [1, 3, 1], 1, 32, 1429082),  # B(1,3,1), 1.4M
        (38, [3, 1], 1, 32, 1211354),  # B(3,1), 1.2M
        (38, [1, 3], 1, 32, 1297370),  # B(1,3), 1.3M
        (56, [3, 1, 1], 1, 32, 1343066),  # B(3,1,1), 1.3M
        (29, [3, 1, 3], 1, 32, 1145498),  # B(3,1,3), 1.1M
    ],
)
def test_preactivation_and_wide_counts(
    depth: int, kernels: list[int], expansion: int, width: int, parameters: int
) -> None:
    block = BlockSpec(kernels, expansion, stride_in=min(2, expansion), order=PREACTIVATION)
    actual, _ = counts(lambda: CifarNet(3, 10, depth, width, Wide, block=block, stem_width=16))
    assert actual == parameters


def test_fixup_adds_the_papers_scalars() -> None:
    """Check figure 1 (right) of the Fixup paper, with 4 biases and a multiplier per block, and 2 other biases."""
    with_scalars, _ = counts(
        lambda: CifarNet(3, 10, 20, 16, Identity, block=BlockSpec(order=ORDERS["fixup"]), norm=nn.Identity)
    )
    without, _ = counts(lambda: CifarNet(3, 10, 20, 16, Identity, norm=nn.Identity))
    assert with_scalars == without + 9 * 5 + 2


def build(n: int, block: BlockSpec, **changes: Any) -> Any:
    """Build a `CifarNet` with n blocks per stage."""
    options: dict[str, Any] = {"in_channels": 3, "classes": 10, "width": 4, "shortcut": Identity, "block": block}
    options |= changes
    if "norm" in options and "norm" in signature(options["shortcut"]).parameters:  # like ${..norm} in conf
        options["shortcut"] = partial(options["shortcut"], norm=options["norm"])
    return CifarNet(depth=options.get("stages", 3) * block.layers * n + 2, **options)


def without_shortcuts(setting: dict[str, Any]) -> Any:
    """Build the plain counterpart of one of SETTINGS."""
    return build(**setting | {"shortcut": Plain})  # pyright: ignore[reportArgumentType]


SETTINGS = st.fixed_dictionaries(
    {
        "block": st.builds(
            lambda block, order, bias: BlockSpec(block.kernels, block.expansion, block.stride_in, bias, order),
            st.sampled_from(list(BLOCKS.values())),
            st.sampled_from(list(ORDERS.values())),
            st.booleans(),
        ),
        "shortcut": st.sampled_from(list(SHORTCUTS.values())),
        "norm": st.sampled_from(list(NORMS.values())),
        "width": st.integers(1, 9),
        "n": st.integers(1, 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(SETTINGS, st.integers(1, 3), st.integers(5, 12), st.integers(2, 11))
def test_forward_backward_and_state_dict(setting: dict[str, Any], channels: int, size: int, classes: int) -> None:
    network = build(**setting, in_channels=channels, classes=classes)
    images = torch.randn(3, channels, size, size, generator=Generator().manual_seed(0))
    he_fan_out(network, Generator().manual_seed(0))
    logits = network(images)
    logits.square().mean().backward()
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    weighted = [m for name, m in network.named_modules() if "shortcut" not in name.split(".")]
    layers = 3 * setting["block"].layers * setting["n"] + 2
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in weighted) == layers
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    loaded = build(**setting, in_channels=channels, classes=classes)
    loaded.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(loaded.eval()(images), network.eval()(images))


@settings(max_examples=30, deadline=None)
@given(SETTINGS)
def test_backbone_depends_on_the_seed_and_not_on_the_shortcut(setting: dict[str, Any]) -> None:
    plain, network = without_shortcuts(setting), build(**setting)
    scheme = [he_fan_out, he_fan_in, orthogonal, delta_orthogonal][setting["width"] % 4]
    for initialised in (plain, network):
        scheme(initialised, Generator().manual_seed(3))
    backbone, weights = plain.state_dict(), network.state_dict()
    assert set(backbone) <= set(weights)
    assert all("shortcut" in key.split(".") for key in set(weights) - set(backbone))
    assert all(torch.equal(backbone[key], weights[key]) for key in backbone)


@settings(max_examples=30, deadline=None)
@given(SETTINGS)
def test_plain_network_ignores_its_shortcuts(setting: dict[str, Any]) -> None:
    network = without_shortcuts(setting).eval()
    x = images = torch.randn(2, 3, 8, 8, generator=Generator().manual_seed(0))
    x = network.stem(images)
    for stage in network.stages:
        for block in stage:
            x = block.post_add(block.residual(block.pre(x)))
    assert torch.equal(network(images), network.head(network.tail(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@settings(max_examples=4, deadline=None)
@given(setting=SETTINGS)
def test_networks_compile_and_export(shortcut: str, setting: dict[str, Any]) -> None:
    network = build(**setting | {"shortcut": SHORTCUTS[shortcut], "n": 1})
    he_fan_out(network, Generator().manual_seed(0))
    images = torch.randn(2, 3, 8, 8, generator=Generator().manual_seed(0))
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))
    network.eval()
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shortcut", [Plain, Identity])
def test_an_mlp_is_a_stack_of_linear_layers(shortcut: ShortcutFactory, norm: str) -> None:
    """Compared with torch's own layers on vectors."""
    net = MLP((3, 4, 4), 10, 8, 6, shortcut, norm=NORMS[norm])
    he_fan_out(net, Generator().manual_seed(0))
    images = torch.randn(5, 3, 4, 4, generator=Generator().manual_seed(1))

    def normalised(x: Tensor) -> Tensor:
        if norm == "batch":
            return F.batch_norm(x, None, None, training=True)
        return F.group_norm(x, {"group": 2, "layer": 1}[norm]) if norm != "none" else x

    stem, *layers = [module.weight[:, :, 0, 0] for module in net.modules() if isinstance(module, nn.Conv2d)]
    x = normalised(F.linear(images.flatten(1), stem)).relu()
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        fx = normalised(F.linear(normalised(F.linear(x, first)).relu(), second))
        x = (fx + x if shortcut is Identity else fx).relu()
    torch.testing.assert_close(net(images), net.head(x[:, :, None, None]))
    assert len(layers) == 6


def test_layer_norm_of_an_mlp_is_that_of_features() -> None:
    x = torch.randn(5, 6)
    torch.testing.assert_close(NORMS["layer"](6)(x[:, :, None, None])[:, :, 0, 0], F.layer_norm(x, (6,)))


@given(st.integers(-3, 130), st.integers(1, 4), st.integers(1, 4))
def test_invalid_depth_suggests_the_nearest(depth: int, stages: int, layers: int) -> None:
    per_n = stages * layers
    if depth >= per_n + 2 and (depth - 2) % per_n == 0:
        return
    with pytest.raises(InputError, match=rf"{per_n}n\+2") as raised, torch.device("meta"):
        CifarNet(3, 10, depth, 16, Plain, block=BlockSpec([3] * layers), stages=stages)
    below, above = (int(word) for word in str(raised.value).rsplit("are ", 1)[1].split(" and "))
    assert above == below + per_n
    assert (below - 2) % per_n == 0
    assert depth < per_n + 2 or below < depth < above


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CifarNet(3, 10, 21, 16, Plain), r"model.depth is 21; it must be 6n\+2 .* 20 and 26"),
        (lambda: CifarNet(3, 10, 26, 16, Plain, block=BOTTLENECK), r"model.depth is 26; it must be 9n\+2 .* 20 and 29"),
        (lambda: CifarNet(3, 10, 20, 0, Plain), r"model.width is 0"),
        (lambda: CifarNet(3, 10, 20, 4, Plain, stages=0), r"model.stages is 0"),
        (lambda: CifarNet(3, 10, 20, 4, Plain, stem_width=0), r"model.stem_width is 0"),
        (lambda: ImageNet(3, 10, 18, 0, Plain), r"model.width is 0"),
        (lambda: MLP((3, 4, 4), 10, 9, 8, Plain), r"model.depth is 9; it must be 2n\+2 .* are 8 and 10"),
        (lambda: MLP((3, 4, 4), 10, 8, 0, Plain), r"model.width is 0"),
        (lambda: MLP((3, 4, 4), 10, 8, 8, Plain, block=BlockSpec()), r"model.block.kernels is \[3, 3\]; in an MLP"),
        (
            lambda: ImageNet(3, 10, 50, 4, Plain),
            r"model.depth is 50; with 2 layers per block it must be one of 18, 34,",
        ),
        (lambda: BlockSpec([2]), r"model.block.kernels is \[2\]; it must be a list of odd kernel sizes"),
        (lambda: BlockSpec([]), r"model.block.kernels is \[\]"),
        (lambda: BlockSpec(stride_in=3), r"model.block.stride_in is 3; it must be the index of a convolution, 1 to 2"),
        (lambda: BlockSpec(expansion=0), r"model.block.expansion is 0"),
        (
            lambda: LayerOrder(post=["nrom"]),
            r"model.block.order.post is \['nrom'\]; it must be a list of any of norm, relu,",
        ),
        (lambda: LayerOrder(post_add="relu"), r"model.block.order.post_add is 'relu'; it must be a list"),
    ],
)
def test_invalid_options_are_reported(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_plain_and_identity_have_the_same_keys() -> None:
    plain, identity = (CifarNet(3, 10, 20, 16, shortcut).state_dict() for shortcut in (Plain, Identity))
    assert list(plain) == list(identity)


@pytest.mark.parametrize("join", [lambda x, fx: x, lambda x, fx: fx.sigmoid() * x, lambda x, fx: (fx + x).exp()])
def test_shortcut_may_return_its_input_or_save_its_output(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Custom(nn.Module):
        def forward(self, x: Tensor, fx: Tensor) -> Tensor:
            return join(x, fx)

    block: Any = Block(BlockSpec(), 4, 4, 1, lambda in_channels, out_channels, stride: Custom())
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    block(block(x)).sum().backward()
    assert x.grad is not None


# orders of He et al. 2016 (Identity Mappings), figure 4, and of Gross & Wilber, as formulas for identity blocks
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "original": lambda x, c1, c2, n: (n[1](c2(n[0](c1(x)).relu())) + x).relu(),
    "bn_after_addition": lambda x, c1, c2, n: n[1](c2(n[0](c1(x)).relu()) + x).relu(),
    "relu_before_addition": lambda x, c1, c2, n: n[1](c2(n[0](c1(x)).relu())).relu() + x,
    "relu_only_preactivation": lambda x, c1, c2, n: n[1](c2(n[0](c1(x.relu())).relu())) + x,
    "full_preactivation": lambda x, c1, c2, n: c2(n[1](c1(n[0](x).relu())).relu()) + x,
    "no_relu_after_addition": lambda x, c1, c2, n: n[1](c2(n[0](c1(x)).relu())) + x,
}


@pytest.mark.parametrize("order", FORMULAS)
def test_layer_orders_match_the_formulas(order: str) -> None:
    block: Any = Block(BlockSpec(order=ORDERS[order]), 4, 4, 1, Identity)
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    if order == "full_preactivation":
        assert norms[0] is block.pre.norm
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    x = torch.randn(2, 4, 6, 6)
    first, second = block.residual.conv1, block.residual.conv2
    torch.testing.assert_close(block(x), FORMULAS[order](x, first, second, norms))


def test_fixup_block_matches_its_formula() -> None:
    block: Any = Block(BlockSpec(order=ORDERS["fixup"]), 4, 4, 1, Identity, norm=nn.Identity)
    scalars = [p for p in block.parameters() if p.numel() == 1]
    assert len(scalars) == 5
    for i, scalar in enumerate(scalars):
        nn.init.constant_(scalar, 0.1 * (i + 1))
    x = torch.randn(2, 4, 6, 6)
    first, second = block.residual.conv1, block.residual.conv2
    bias1a, bias1b, bias2a, scale, bias2b = (0.1 * (i + 1) for i in range(5))
    inner = (first(x + bias1a) + bias1b).relu() + bias2a
    torch.testing.assert_close(block(x), (scale * second(inner) + bias2b + x).relu())


def test_shortcut_takes_the_preactivation_where_the_shape_changes_and_in_the_first_block() -> None:
    network: Any = CifarNet(3, 10, 14, 4, Identity, block=BlockSpec(order=PREACTIVATION))
    assert [block.shared for stage in network.stages for block in stage] == [True, False, True, False, True, False]
    assert [name for name, _ in network.stem.named_children()] == ["conv"]
    assert [name for name, _ in network.tail.named_children()] == ["norm", "activation"]
    block: Any = Block(BlockSpec(order=PREACTIVATION), 4, 8, 2, Projection)
    x = torch.randn(2, 4, 6, 6)
    activated = block.pre(x)
    torch.testing.assert_close(
        block(x), block.residual(activated) + block.shortcut.norm(block.shortcut.conv(activated[:, :, ::2, ::2]))
    )


def test_resblk_matches_the_teaching_example() -> None:
    """Compare with a formula: biases in convolutions, a projection if the channels differ, and no final ReLU."""
    block: Any = Block(BlockSpec(bias=True, order=ORDERS["no_relu_after_addition"]), 4, 8, 2, SHORTCUTS["resblk"])
    x = torch.randn(2, 4, 6, 6)
    conv = partial(nn.functional.conv2d, stride=2)
    r, s = block.residual, block.shortcut
    out = r.norm1(conv(x, r.conv1.weight, r.conv1.bias, padding=1)).relu()
    out = r.norm2(nn.functional.conv2d(out, r.conv2.weight, r.conv2.bias, padding=1))
    torch.testing.assert_close(block(x), s.norm(conv(x, s.conv.weight, s.conv.bias)) + out)
