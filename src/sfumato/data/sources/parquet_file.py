"""Opening a Parquet file."""

import os
from pathlib import Path
from typing import Any


def open_parquet(file: Path, *, memory_map: bool = False) -> Any:
    """A `ParquetFile`. Raises Arrow's errors and `OSError`.

    Arrow takes a name in UTF-8 alone: a file of another name is opened here, and not mapped.
    """
    import pyarrow.parquet as pq

    try:
        os.fsencode(file).decode("utf-8")
    except UnicodeDecodeError:
        return pq.ParquetFile(file.open("rb"))
    return pq.ParquetFile(file, memory_map=memory_map)
