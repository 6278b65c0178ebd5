"""Predictions: their summary and their file."""

from pathlib import Path

import pytest
import torch

from plainres.analysis.predictions import Predictions
from plainres.errors import InputError


def test_summary_of_predictions() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    predictions = Predictions(logits, torch.tensor([0, 1, 0]))
    assert predictions.wrong.tolist() == [False, False, True]
    assert str(predictions).splitlines()[1:] == [
        "error 33.33 % of 3 images",
        "",
        "class  images  error in %",
        "    0       2       50.00",
        "    1       1        0.00",
    ]
    lost = Predictions(torch.tensor([[torch.nan, 0.0], [0.0, torch.nan], [1.0, 0.0]]), torch.tensor([0, 1, 0]))
    assert lost.wrong.tolist() == [True, True, False]  # a NaN predicts no class
    with pytest.raises(InputError, match="cannot write"):
        predictions.save(Path("/nowhere/predictions.parquet"))
