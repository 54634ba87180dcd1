"""What TensorBoard shows of a run: a file of events for each start of it.

Not through TensorBoard's own writer, whose thread has a client of S3 of its own, without our retries, and whose failure
is raised by the next call. The format is TensorFlow's: records of the protocol buffer Event.
"""

import io
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.train.checkpoints.storage_protocol import Storage

logger = logging.getLogger("clip")


class Board:
    """Collects events, and writes them when told to. It never ends training: where it cannot be written there is one
    warning, and no more of it.

    Args:
        folder: of TensorBoard's files, local or at a URI.
        files: the storage of URIs.
        first_step: what a killed run had logged of this step and later ones is hidden.
    """

    def __init__(self, folder: str, files: Storage, first_step: int) -> None:
        self._uri = files.join(folder, f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self._files = files
        self._failed = False
        self._events = io.BytesIO()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after so many steps, by name; they are not written yet."""
        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=numbers)))

    def flush(self) -> None:
        """Write what has been added."""
        if self._failed:
            return
        try:
            if "://" in self._uri:
                self._files.write_bytes(self._uri, self._events.getvalue())
            else:
                self._append(Path(self._uri))
        except Exception as error:  # noqa: BLE001 - whatever it is, a picture of training is not worth its end
            self._failed = True
            logger.warning("TensorBoard gets nothing more of this run, which goes on: %s", error)

    def _add(self, event: Event) -> None:
        if not self._failed:
            event.wall_time = time.time()
            RecordWriter(self._events).write(event.SerializeToString())

    def _append(self, path: Path) -> None:
        """Local files grow, because TensorBoard keeps them open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(self._events.getvalue())
        self._events = io.BytesIO()
