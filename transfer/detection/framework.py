"""Check that Detectron2 can be imported, and keep its log lines and warnings from the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from simmim_bench.errors import MissingFrameworkError

# Loggers whose warnings concern developers of Detectron2, not users of a transfer.
VERBOSE_LOGGERS = ("detectron2", "fvcore", "iopath", "torch.fx._symbolic_trace")


def require_detectron2() -> None:
    """Check that Detectron2 and the libraries that it needs can be imported.

    Raises:
        MissingFrameworkError: a library is missing, or Detectron2 is older than ViTDet.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Detectron2 still uses torch.jit.script
            import pycocotools.mask  # noqa: F401
            import shapely.geometry  # noqa: F401  # fvcore imports it at the first crop of a polygon
            from detectron2.modeling import SimpleFeaturePyramid  # noqa: F401
    except ImportError as error:
        raise MissingFrameworkError(
            f"coco needs Detectron2, which cannot be imported ({error}); install the extra [det] and "
            "Detectron2 from source as described in docs/quickstart.md, section 'Installation'."
        ) from error


@contextmanager
def silence_detectron2() -> Iterator[None]:
    """Suppress Detectron2's log lines and deprecation warnings within the block."""
    loggers = [logging.getLogger(name) for name in VERBOSE_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # torch.cuda.amp, torch.jit
            warnings.filterwarnings("ignore", message=".*torch.meshgrid")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
