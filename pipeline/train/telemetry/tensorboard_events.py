"""Write the events that TensorBoard shows, one event file per start of a run.

TensorBoard's own writer is not used: its thread has a separate S3 client without this program's retries, and the next
call raises its errors. The file format is TensorFlow's: records of the protocol buffer Event.
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


class EventFile:
    """Collects events, and writes them on `flush`. A failed write does not end training: it logs one warning, and
    nothing more is written.

    Args:
        folder: folder of TensorBoard's files, local or at a URI.
        storage: where URIs are written.
        first_step: TensorBoard hides events of this step and later ones in older files, which a killed job left.
    """

    def __init__(self, folder: str, storage: Storage, first_step: int) -> None:
        self._uri = storage.join(folder, f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self._storage = storage
        self._failed = False
        self._events = io.BytesIO()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add values by name after `step` steps. `flush` writes them."""
        tagged_values = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=tagged_values)))

    def flush(self) -> None:
        """Write the events that were added."""
        if self._failed:
            return
        try:
            if "://" in self._uri:
                self._storage.write_bytes(self._uri, self._events.getvalue())
            else:
                self._append(Path(self._uri))
        except Exception as error:  # noqa: BLE001 - no failed write of TensorBoard may end training
            self._failed = True
            logger.warning("cannot write TensorBoard events, training continues without them: %s", error)

    def _add(self, event: Event) -> None:
        if not self._failed:
            event.wall_time = time.time()
            RecordWriter(self._events).write(event.SerializeToString())

    def _append(self, path: Path) -> None:
        """Append to a local file: TensorBoard keeps it open and continues to read at its last position."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(self._events.getvalue())
        self._events = io.BytesIO()
