"""simmim-bench: how well does a SimMIM backbone transfer?

The Python interface, which `simmim-bench` is the command line of:

    import simmim_bench as sb

    ckpt = sb.pretrain("vit_pocket", data="pocket/imagenet", out="runs/pocket")
    record = sb.transfer("linear", ckpt=ckpt, data="pocket/imagenet")
    sb.leaderboard("runs")

Functions are imported when they are first used: this import loads no torch. See docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.simmim import load_simmim as load_simmim
    from simmim_bench.api.evaluation import evaluate as evaluate
    from simmim_bench.api.pretraining import pretrain as pretrain
    from simmim_bench.api.records import read_record as read_record
    from simmim_bench.api.records import records as records
    from simmim_bench.api.sharing import push as push
    from simmim_bench.api.suites import suite as suite
    from simmim_bench.api.transfers import transfer as transfer
    from simmim_bench.api.transfers import transfers as transfers
    from simmim_bench.backbones import load_backbone as load_backbone
    from simmim_bench.errors import BenchError as BenchError
    from simmim_bench.leaderboard.build import build_leaderboard as leaderboard
    from simmim_bench.results.record import Record as Record

__version__ = "0.1.0"

_MODULES = {
    "BenchError": "simmim_bench.errors",
    "Record": "simmim_bench.results.record",
    "evaluate": "simmim_bench.api.evaluation",
    "load_backbone": "simmim_bench.backbones",
    "load_simmim": "pretrain.simmim",
    "pretrain": "simmim_bench.api.pretraining",
    "push": "simmim_bench.api.sharing",
    "read_record": "simmim_bench.api.records",
    "records": "simmim_bench.api.records",
    "suite": "simmim_bench.api.suites",
    "transfer": "simmim_bench.api.transfers",
    "transfers": "simmim_bench.api.transfers",
}
__all__ = [
    "BenchError",
    "Record",
    "__version__",
    "evaluate",
    "leaderboard",
    "load_backbone",
    "load_simmim",
    "pretrain",
    "push",
    "read_record",
    "records",
    "suite",
    "transfer",
    "transfers",
]


def __getattr__(name: str) -> Any:
    if name == "leaderboard":  # the package, which is callable
        return import_module("simmim_bench.leaderboard")
    if name not in _MODULES:
        raise AttributeError(f"module 'simmim_bench' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
