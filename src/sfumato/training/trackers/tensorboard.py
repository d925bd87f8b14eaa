"""TensorBoard: an event file in the run folder, which `tensorboard --logdir runs` shows.

The file is written here, so that training needs no package for it: records as in TensorFlow's
`record_writer.cc`, each an `Event` of `event.proto` in protobuf's wire format.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from sfumato.base.files import make_folder, writing
from sfumato.training.trackers.protocol import End, Point, Sent, TrackedRun

FOLDER = "tensorboard"


class TensorBoard:
    """`Sent.mark` is the length of the event file: what a kill left behind it is cut off."""

    _file: IO[bytes]

    def open(self, run: TrackedRun, sent: Sent) -> Sent:
        folder = make_folder(run.folder / FOLDER)
        path = folder / f"events.out.tfevents.0000000000.{run.key}"
        length = path.stat().st_size if path.exists() else 0
        if not 0 < sent.mark <= length:  # the file is new, or was removed: everything is sent again
            sent = Sent()
        with writing(path):
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(sent.mark)
            self._file.seek(sent.mark)
        if sent.mark == 0:
            self._begin(run)
        return sent

    def _begin(self, run: TrackedRun) -> None:
        rows = (f"| {name} | {json.dumps(value)} |" for name, value in run.parameters.items())
        table = "\n".join(["| setting | value |", "| --- | --- |", *rows])
        self._write(field(3, b"brain.Event:2"))
        self._write(event(0, 0.0, [text("parameters", table)]))

    def metrics(self, points: Sequence[Point], sent: Sent) -> None:
        for point in points:
            self._write(event(point.images_seen, point.time, scalars(point.values)))
        self._flush(sent)

    def picture(self, images_seen: int, file: Path, sent: Sent) -> None:
        from PIL import Image

        content = file.read_bytes()
        with Image.open(file) as opened:
            width, height = opened.size
        picture = field(1, height) + field(2, width) + field(3, 3) + field(4, content)
        value = field(1, b"samples") + field(4, picture)
        self._write(event(images_seen, file.stat().st_mtime, [value]))
        self._flush(sent)

    def artifact(self, name: str, file: Path) -> None:
        """It lies in the run folder, beside the events."""

    def close(self, end: End) -> None:
        self._file.close()

    def _flush(self, sent: Sent) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        sent.mark = self._file.tell()

    def _write(self, record: bytes) -> None:
        length = struct.pack("<Q", len(record))
        self._file.write(length + masked_crc(length) + record + masked_crc(record))


TRACKER = TensorBoard


def address() -> str:
    """There is none: it writes into the run folder."""
    return FOLDER


# Messages of event.proto and summary.proto --------------------------------------------------------


def event(step: int, time: float, values: Iterable[bytes]) -> bytes:
    """An `Event` with a `Summary` of values."""
    summary = b"".join(field(1, value) for value in values)
    return field(1, time) + field(2, step) + field(5, summary)


def scalars(values: Mapping[str, float]) -> Iterable[bytes]:
    return (field(1, name.encode()) + b"\x15" + struct.pack("<f", v) for name, v in values.items())


def text(name: str, markdown: str) -> bytes:
    """A `Summary.Value` for the plugin of texts: a tensor of one string."""
    metadata = field(1, field(1, b"text"))
    tensor = field(1, 7) + field(2, field(2, field(1, 1))) + field(8, markdown.encode())
    return field(1, name.encode()) + field(9, metadata) + field(8, tensor)


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message: a varint, a double, or bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


@cache
def _table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    table: Any = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table


def masked_crc(content: bytes) -> bytes:
    """The checksum of a record, masked as TensorFlow masks it."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
