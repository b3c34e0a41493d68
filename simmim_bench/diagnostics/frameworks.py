"""Check which frameworks and libraries are installed and work; name the command that installs each.

They are imported in another process, so that a broken one cannot crash this one.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.diagnostics.findings import Finding

CORE = "pip install simmim-bench"
SEG = "pip install 'simmim-bench[seg]'"
# The wheel of Detectron2's Python sources, with the SHA-256 that pip verifies.
DETECTRON2_REQUIREMENT = Path(__file__).with_name("detectron2.txt")
DETECTRON2_SOURCES = (
    "pip install --require-hashes --no-deps --only-binary=:all: --python-version 3.10 "
    '--target "$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
    "-r"
)
MARK = "simmim-bench doctor: "  # marks our lines among those that frameworks print
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
    """A package that may be missing or broken.

    Attributes:
        name: the package that is imported.
        serves: what it is used for.
        probe: code that uses the package and leaves its version in `v`.
        remedy: the command that installs it.
        optional: whether it may be missing as long as its use is not requested.
    """

    name: str
    serves: str
    probe: str
    remedy: str
    optional: bool = False


def _installed(package: str) -> str:
    """Return a probe that looks the version up, for packages without `__version__`."""
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
        f"pip install 'simmim-bench[det]' && {DETECTRON2_SOURCES} "
        f"{shlex.quote(str(DETECTRON2_REQUIREMENT))}",
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


def check_frameworks(
    frameworks: Sequence[Framework] = FRAMEWORKS, needed: Collection[str] = ()
) -> list[Finding]:
    """Import and use each framework in another process.

    All share one process, since most load torch. One that failed there is tried again in a process without
    the others, so that no framework is blamed for another.

    Args:
        needed: names of optional frameworks that are required this time.
    """
    found = _probe(frameworks)
    for framework in frameworks:
        result = found.get(framework.name, {"missing": False})
        if "version" not in result and not result["missing"]:
            found |= _probe([framework])
    return [
        _to_finding(framework, found[framework.name], framework.name in needed)
        for framework in frameworks
    ]


def _probe(frameworks: Sequence[Framework]) -> dict[str, dict[str, Any]]:
    """Return each framework's version or error; one that ended a process shared with others is absent."""
    probes = {framework.name: framework.probe for framework in frameworks}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBES, json.dumps(probes)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    found: dict[str, dict[str, Any]] = dict(json.loads(line.removeprefix(MARK)) for line in lines)
    if len(frameworks) == 1:
        died = {"missing": False, "error": f"its import ends Python with code {done.returncode}"}
        found = {frameworks[0].name: died} | found
    return found


def _to_finding(framework: Framework, result: dict[str, Any], needed: bool) -> Finding:
    version, error = result.get("version"), result.get("error")
    facts = {"version": version, "error": error, "serves": framework.serves}
    if version is not None:
        return Finding(
            group="frameworks",
            name=framework.name,
            state="ok",
            said=f"{version:<14} {framework.serves}",
            facts=facts,
        )
    # A broken package was installed on purpose, and may break what would work without it.
    is_optional = result["missing"] and framework.optional and not needed
    return Finding(
        group="frameworks",
        name=framework.name,
        state="warning" if is_optional else "problem",
        said=f"{'missing' if result['missing'] else f'broken: {error}'}; for {framework.serves}",
        remedy=framework.remedy,
        facts=facts,
    )
