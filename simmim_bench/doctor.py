"""What is installed, what works, and what to run to mend it.

In: nothing. Out: one line an engine with its version or the command that installs it. Each engine is
imported in a process of its own, so that a broken one cannot take the others along.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

CORE = "pip install simmim-bench"
DETECTRON2_SOURCES = (
    "pip install --no-deps --only-binary=:all: --python-version 3.10 "
    '--target "$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
    "sal-detectron2==0.7.2"
)


@dataclass(frozen=True)
class Engine:
    """Something that may be missing: what it serves, how to see that it works, how to mend it."""

    name: str
    serves: str
    probe: str
    remedy: str


ENGINES = (
    Engine("torch", "everything", "import torch; v = torch.__version__; torch.ones(2).sum()", CORE),
    Engine(
        "torchvision",
        "images, detection",
        "import torchvision; v = torchvision.__version__\n"
        "import torch; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)",
        "pip install --upgrade torch torchvision  (they must match)",
    ),
    Engine("timm", "backbones", "import timm; v = timm.__version__", CORE),
    Engine(
        "pycocotools",
        "COCO scores",
        "import pycocotools.mask; from importlib.metadata import version; v = version('pycocotools')",
        CORE,
    ),
    Engine(
        "detectron2",
        "transfer coco",
        "import detectron2; from detectron2.modeling import GeneralizedRCNN; v = detectron2.__version__",
        f"pip install 'simmim-bench[det]' && {DETECTRON2_SOURCES}",
    ),
    Engine(
        "mmseg",
        "transfer ade20k",
        "import mmseg; from mmseg.models import UPerHead; v = mmseg.__version__",
        "pip install 'simmim-bench[seg]'",
    ),
)


@dataclass(frozen=True)
class Finding:
    """What a probe of one engine gave: a version, or the last line of its error."""

    engine: Engine
    version: str | None
    error: str | None


def examine(engine: Engine) -> Finding:
    """Import an engine in a fresh process and use it a little."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{engine.probe}\nprint(v)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return Finding(engine, done.stdout.strip().splitlines()[-1], None)
    lines = done.stderr.strip().splitlines()
    return Finding(engine, None, lines[-1] if lines else f"exit code {done.returncode}")
