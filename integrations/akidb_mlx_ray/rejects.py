"""The side file of rows that cannot be written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from errno import EISDIR
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from akidb_mlx_plugin.errors import InvalidInputError


class RejectFile:
    """JSON lines of id, text and reason; the file replaces an older one once complete."""

    def __init__(self, path: Path) -> None:
        """Store the path."""
        self._path = path
        # An older file may be an input.
        self._part = Path(f"{path}.part")
        self._file: IO[str] | None = None
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> RejectFile:
        """Reject an unwritable file now rather than after hours of embedding."""
        try:
            if self._path.is_dir():
                raise IsADirectoryError(EISDIR, "it is a folder")
            self._part.open("w", encoding="utf-8").close()
        except OSError as error:
            raise InvalidInputError(
                f"cannot write {self._path}, the file of rejected rows: {error.strerror}; name another with rejects="
            ) from error
        self._part.unlink()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._part.replace(self._path)

    @property
    def path(self) -> Path | None:
        """Return the file, or None if nothing was rejected."""
        return self._path if self._counts else None

    @property
    def counts(self) -> Mapping[str, int]:
        """Return the number of rejected rows, by reason."""
        return dict(self._counts.most_common())

    def add(self, id_: Any, text: Any, reason: str) -> None:
        """Write one row."""
        if self._file is None:
            self._file = self._part.open("w", encoding="utf-8")
        self._counts[reason] += 1
        line = {"id": id_, "text": text, "reason": reason}
        self._file.write(json.dumps(line, ensure_ascii=False, default=repr) + "\n")
