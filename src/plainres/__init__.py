"""plainres: a test bench for what shortcut connections do to deep networks.

Names are imported when they are first used, so that `import plainres` waits for neither torch nor Hydra.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plainres.analysis.evaluation import load, load_network, predict
    from plainres.config.compose import compose
    from plainres.config.instantiate import build_network
    from plainres.config.schema import Config
    from plainres.errors import InputError, RunFailedError
    from plainres.launch.devices import train
    from plainres.launch.sweep import sweep
    from plainres.launch.tuned_sweep import sweep_tuned
    from plainres.reporting.report import write_report
    from plainres.reporting.study import curves, read_study, results
    from plainres.runs.record import Run

__version__ = version("plainres")
__all__ = [
    "Config",
    "InputError",
    "Run",
    "RunFailedError",
    "__version__",
    "build_network",
    "compose",
    "curves",
    "load",
    "load_network",
    "predict",
    "read_study",
    "results",
    "sweep",
    "sweep_tuned",
    "train",
    "write_report",
]

_HOMES = {
    "plainres.analysis.evaluation": ("load", "load_network", "predict"),
    "plainres.config.compose": ("compose",),
    "plainres.config.instantiate": ("build_network",),
    "plainres.config.schema": ("Config",),
    "plainres.errors": ("InputError", "RunFailedError"),
    "plainres.launch.devices": ("train",),
    "plainres.launch.sweep": ("sweep",),
    "plainres.launch.tuned_sweep": ("sweep_tuned",),
    "plainres.reporting.report": ("write_report",),
    "plainres.reporting.study": ("curves", "read_study", "results"),
    "plainres.runs.record": ("Run",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'plainres' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return __all__
