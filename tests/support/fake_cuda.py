"""Training steps on fake CUDA tensors, which have shapes, dtypes and devices, but no values.

    python tests/support/fake_cuda.py FOLDER

compiles fake_cuda.cpp in FOLDER, and prints a JSON object with what a step of each network does (see `observe`).
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def load_device(folder: Path) -> None:
    """Compile and load the device. torch must not have been imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    library = folder / "fake_cuda.so"
    command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    command += ["-o", str(library), str(Path(__file__).with_suffix(".cpp")), "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    for name in (root / "lib" / "libc10.so", root / "lib" / "libtorch_cpu.so", library):
        ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)


load_device(Path(sys.argv[1]))
sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from plainres.config.schema import PRECISIONS  # noqa: E402
from plainres.data.batches import TrainingBatches  # noqa: E402
from plainres.data.datamodule import ImageBatches  # noqa: E402
from plainres.data.sources import Synthetic  # noqa: E402
from plainres.models.blocks import BlockSpec  # noqa: E402
from plainres.models.networks import CifarNet  # noqa: E402
from plainres.models.shortcuts import Identity  # noqa: E402
from plainres.training.classifier import Classifier  # noqa: E402
from plainres.training.epoch_loop import EpochLoop  # noqa: E402
from support.shipped import ACTIVATIONS, CONNECTIONS, ORDERS, SHORTCUTS, STATEFUL_ORDER  # noqa: E402
from support.training import recipe  # noqa: E402

GPU = torch.device("cuda", 0)
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "_reshape_alias",
        "alias",
        "as_strided",
        "detach",
        "expand",
        "permute",
        "select",
        "slice",
    ),
    *("squeeze", "t", "transpose", "unsqueeze", "empty", "empty_like", "empty_strided", "new_empty_strided"),
}


class Observer(TorchDispatchMode):
    """Observer of all operations on tensors: what waits for the device, what is on the host, dtypes, and kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: list[str] = []
        self.on_host: list[str] = []
        self.dtypes: defaultdict[str, set[str]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "prim":  # a question about a tensor, such as its device
            return func(*args, **(kwargs or {}))
        if name in WAITING:
            self.waits.append(name)
            return 0
        # the fused optimizer has no fake kernel, and returns nothing
        out = None if name == "_fused_sgd_" else func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.on_host.append(name)
        if name not in VIEWS:
            self.kernels[name] += 1
        self.dtypes[name] |= {
            str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()
        }
        return out


def plugin(precision: str) -> Precision:
    if precision == "bf16-mixed":
        return MixedPrecision("bf16-mixed", "cuda")
    return DoublePrecision() if precision == "64-true" else Precision()


def on_gpu(network: nn.Module) -> nn.Module:
    """Replace the parameters and buffers of a network by fake ones on the GPU, which `Module.to` cannot do."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().to(GPU))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(GPU)
    return network


def observe(shortcut: Any, precision: str, optim: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Return what a captured step does: its augmentation, network, loss, counting, backward pass and optimizer.

    `waits` and `on_host` also cover the hook before a step, which sets what changes between steps.
    """
    source = Synthetic([3, 8, 8], 10, 32, 16, 2, True)
    images, training = source.load(), recipe(**{"batch_size": 8, "steps": 100} | (optim or {}))
    _ = images.channel_statistics  # computed on the host, once
    network = CifarNet(3, 10, 8, 4, shortcut, **options).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    precise = plugin(precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = on_gpu(precise.convert_module(network))
        data = ImageBatches(images, source, training.batch_size, 0)
        classifier = Classifier(network, training, training.steps or 0, data.steps_per_epoch, capturable=True)
        classifier._device = GPU  # pyright: ignore[reportAttributeAccessIssue]

        def training_step(*batch: Any) -> Tensor:
            with precise.train_step_context():
                return classifier.training_step(*batch)

        trainer = SimpleNamespace(
            strategy=SimpleNamespace(root_device=GPU, training_step=training_step),
            precision_plugin=precise,
            datamodule=data,
            lightning_module=classifier,
            global_step=0,
            global_rank=0,
            world_size=1,
            optimizers=[],
        )
        data.trainer = classifier._trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
        Classifier.trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
        data.setup("fit")
        trainer.optimizers = [classifier.configure_optimizers()]
        classifier.on_fit_start()
        classifier.on_train_start()
        loop = EpochLoop.__new__(EpochLoop)
        loop.__dict__["trainer"] = trainer
        sampled = next(iter(TrainingBatches(data.training, training.batch_size, 0, lambda: 0)))
        with Observer() as before:
            classifier.on_train_batch_start(sampled, 0)
        with Observer() as step:
            loop._step(sampled)
    return {
        "waits": before.waits + step.waits,
        "on_host": before.on_host + step.on_host,
        "kernels": sum(step.kernels.values()),
        "dtypes": {name: sorted(dtypes) for name, dtypes in step.dtypes.items() if dtypes},
    }


class Waiting(Identity):
    """Shortcut that waits for the device in each step."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        return super().forward(x, fx) * fx.detach().mean().item()


class OnHost(Identity):
    """Shortcut that copies from the host in each step."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        return super().forward(x, fx) * torch.ones(2, device="cpu").to(fx.device)[0]


def main() -> None:
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by deepcopy of torch
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.mem_get_info = lambda device=None: (2**30, 2**30)
    results = {shortcut.__name__: observe(shortcut, "32-true") for shortcut in (Waiting, OnHost)}
    for precision in PRECISIONS:
        results |= {f"{name} {precision}": observe(SHORTCUTS[name], precision) for name in SHORTCUTS}
        for name in CONNECTIONS:
            stateful = BlockSpec(order=STATEFUL_ORDER)
            results[f"{name} {precision}"] = observe(CONNECTIONS[name], precision, block=stateful)
        for name in ORDERS:
            block = BlockSpec(order=ORDERS[name])
            results[f"{name} {precision}"] = observe(SHORTCUTS["identity"], precision, block=block)
        for name in ("leaky", "tailored"):
            activation = partial(ACTIVATIONS[name], **({"eta": 0.5} if name == "tailored" else {}))
            results[f"{name} {precision}"] = observe(SHORTCUTS["identity"], precision, activation=activation)
        optim = {"decay": "weights", "nesterov": True, "clip_norm": 1.0}
        results[f"optimizer {precision}"] = observe(SHORTCUTS["identity"], precision, optim)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
