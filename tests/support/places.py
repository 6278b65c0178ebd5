"""Paths that tests use."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
CONF = ROOT / "conf"
CIFAR10 = Path(os.environ.get("PLAINRES_CIFAR10", ROOT.parent / "shared" / "data" / "cifar10"))
AKAMASTER = os.environ.get("PLAINRES_AKAMASTER", "")  # folder pretrained_models of akamaster/pytorch_resnet_cifar10
PLAINRES = Path(sys.executable).with_name("plainres")
