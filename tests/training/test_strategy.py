import pytest
import torch
from torch import nn

from plainres.training import strategy
from plainres.training.strategy import OneStreamDDP


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_the_model_is_wrapped_on_the_current_stream(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("another stream")

    wrapped: list[object] = []
    monkeypatch.setattr(torch.cuda, "Stream", forbidden)
    monkeypatch.setattr(torch.cuda, "stream", forbidden)
    monkeypatch.setattr(OneStreamDDP, "root_device", torch.device(device))
    monkeypatch.setattr(
        strategy, "DistributedDataParallel", lambda model, device_ids: wrapped.append(device_ids) or model
    )
    model = nn.Linear(2, 2)
    assert OneStreamDDP()._setup_model(model) is model
    assert wrapped == [None if device == "cpu" else [1]]
