"""Which engines are installed, which of them work, and what to run to mend the others.

In: what is going to be needed. Out: a `Finding` an engine, with its version or the command that installs it.
Engines are imported in another process, so that a broken one cannot take this one along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from simmim_bench.diagnostics.findings import Finding

CORE = "pip install simmim-bench"
SEG = "pip install 'simmim-bench[seg]'"
DETECTRON2_SOURCES = (
    "pip install --no-deps --only-binary=:all: --python-version 3.10 "
    '--target "$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
    "sal-detectron2==0.7.2"
)
MARK = "simmim-bench doctor: "  # before our lines: engines print what they like
PROBES = f"""
import contextlib, json, sys
for name, probe in json.loads(sys.argv[1]).items():
    scope = {{}}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(probe, scope)
        found = {{"version": str(scope["v"])}}
    except BaseException as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        text = (str(error).strip().splitlines() or [""])[-1]
        found = {{"missing": absent, "error": f"{{type(error).__name__}}: {{text}}"}}
    print({MARK!r} + json.dumps([name, found]), flush=True)
"""


@dataclass(frozen=True)
class Framework:
    """Something that may be missing.

    Attributes:
        name: of the package that is imported.
        serves: what needs it.
        probe: code that uses it a little and leaves its version in `v`.
        remedy: the command that installs it.
        optional: whether it may be missing where nobody asks for what it serves.
    """

    name: str
    serves: str
    probe: str
    remedy: str
    optional: bool = False


def _installed(package: str) -> str:
    """Give code that looks a version up, for packages that do not say their own."""
    return f"from importlib.metadata import version; v = version({package!r})"


FRAMEWORKS = (
    Framework(
        "torch", "everything", "import torch; v = torch.__version__; torch.ones(2).sum()", CORE
    ),
    Framework(
        "torchvision",
        "images, detection",
        "import torchvision; v = torchvision.__version__\n"
        "import torch; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)",
        "pip install --upgrade torch torchvision  (they must match)",
    ),
    Framework("timm", "backbones", "import timm; v = timm.__version__", CORE),
    Framework(
        "simplejpeg", "fast decoding", f"import simplejpeg; {_installed('simplejpeg')}", CORE
    ),
    Framework(
        "pycocotools",
        "COCO masks",
        f"import pycocotools.mask; {_installed('pycocotools')}",
        CORE,
    ),
    Framework("hotcoco", "COCO scores", f"import hotcoco; {_installed('hotcoco')}", CORE),
    Framework(
        "detectron2",
        "transfer coco",
        "import detectron2, shapely.geometry; from detectron2.modeling import SimpleFeaturePyramid\n"
        "v = detectron2.__version__",
        f"pip install 'simmim-bench[det]' && {DETECTRON2_SOURCES}",
        optional=True,
    ),
    Framework(
        "mmengine", "transfer ade20k", "import mmengine; v = mmengine.__version__", SEG, True
    ),
    Framework(
        "mmcv",
        "transfer ade20k",
        "import mmcv, mmcv.transforms; v = mmcv.__version__",
        SEG,
        optional=True,
    ),
    Framework(
        "mmseg",
        "transfer ade20k",
        "import mmseg; from mmseg.models import UPerHead; v = mmseg.__version__",
        SEG,
        optional=True,
    ),
    Framework(
        "datasets",
        "--data hfds:NAME",
        "import datasets; v = datasets.__version__",
        "pip install 'simmim-bench[hub]'",
        optional=True,
    ),
    Framework(
        "submitit",
        "SLURM jobs",
        f"import submitit; {_installed('submitit')}",
        "pip install 'simmim-bench[slurm]'",
        optional=True,
    ),
    Framework(
        "itables",
        "interactive tables",
        f"import itables; {_installed('itables')}",
        "pip install itables",
        optional=True,
    ),
)
NEEDED = {"coco": ("detectron2",), "ade20k": ("mmengine", "mmcv", "mmseg")}


def examine_frameworks(
    engines: Sequence[Framework] = FRAMEWORKS, needed: Collection[str] = ()
) -> list[Finding]:
    """Import engines in another process and use each a little.

    All share one process, as most load torch; what did not work in it is tried again in one of its own, so
    that no engine is blamed for another.

    Args:
        needed: names of optional ones that may not be missing.
    """
    found = _probe(engines)
    for engine in engines:
        outcome = found.get(engine.name, {"missing": False})
        if "version" not in outcome and not outcome["missing"]:
            found |= _probe([engine])
    return [_judge(engine, found[engine.name], engine.name in needed) for engine in engines]


def _probe(engines: Sequence[Framework]) -> dict[str, dict[str, Any]]:
    """Give what was found of each engine; the last one alone where the process did not end well."""
    probes = {engine.name: engine.probe for engine in engines}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBES, json.dumps(probes)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    found: dict[str, dict[str, Any]] = dict(json.loads(line.removeprefix(MARK)) for line in lines)
    if len(engines) == 1:
        died = {"missing": False, "error": f"its import ends Python with code {done.returncode}"}
        found = {engines[0].name: died} | found
    return found


def _judge(engine: Framework, outcome: dict[str, Any], needed: bool) -> Finding:
    version, error = outcome.get("version"), outcome.get("error")
    facts = {"version": version, "error": error, "serves": engine.serves}
    if version is not None:
        return Finding(
            group="engines",
            name=engine.name,
            state="ok",
            said=f"{version:<14} {engine.serves}",
            facts=facts,
        )
    # Somebody wanted a broken one, and it may break what could do without it.
    spared = outcome["missing"] and engine.optional and not needed
    return Finding(
        group="engines",
        name=engine.name,
        state="warning" if spared else "problem",
        said=f"{'missing' if outcome['missing'] else f'broken: {error}'}; for {engine.serves}",
        remedy=engine.remedy,
        facts=facts,
    )
