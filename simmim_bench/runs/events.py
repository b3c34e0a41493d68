"""An event file for TensorBoard, written without a thread.

torch's SummaryWriter writes from a thread, which prints its own traceback on a full disk. A file that cannot be written
is given up: TensorBoard only shows what `metrics.jsonl` and the figures hold.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """An open event file.

    Args:
        folder: where the file is created.
        report: receives one line if the file cannot be written; nothing is written from then on.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        # The name that TensorBoard looks for; a resumed run adds a file.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._report = folder / name, report
        self._file: IO[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab")  # noqa: SIM115
        except OSError as error:
            self._give_up(error)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        summary = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=summary)))

    def add_image(self, name: str, path: Path, step: int) -> None:
        """Add a PNG."""
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = Summary.Value(tag=name, image=content)
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def finish(self, exit_code: int = 0) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with suppress(OSError):  # it still holds what could not be written
                self._file.close()
        self._file = None
        self._report(
            f"warning: cannot write {self._path}: {error.strerror}; TensorBoard shows nothing from here on"
        )
