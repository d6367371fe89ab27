"""The address that `akidb-mlx bulk` writes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from akidb_mlx_plugin.cli.databases import CHROMA_PORT
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError

if TYPE_CHECKING:
    from akidb_mlx_ray.pipeline import BulkStore

_FORMS = "lancedb://FOLDER/TABLE, lancedb://s3://bucket/path/TABLE or chroma://HOST:PORT/NAME"


@dataclass(frozen=True)
class LanceAddress:
    """A table of a LanceDB database."""

    uri: str
    name: str

    def absolute(self) -> LanceAddress:
        """Return the address with a path valid from any folder."""
        return self if "://" in self.uri else LanceAddress(str(Path(self.uri).expanduser().resolve()), self.name)

    def open(self, config: EmbeddingConfig | None, *, on: str, text_column: str, vector_column: str) -> BulkStore:
        """Return the table, which may not exist yet, with a configuration's function, else its own or the default."""
        from akidb_mlx_lancedb import MLXEmbeddings
        from akidb_mlx_ray.lancedb import BulkTable

        function = MLXEmbeddings.from_config(config) if config else None
        return BulkTable(self.uri, self.name, on, function, text_column, vector_column)


@dataclass(frozen=True)
class ChromaAddress:
    """A collection of a Chroma server."""

    host: str
    port: int
    name: str

    def absolute(self) -> ChromaAddress:
        """Return it unchanged; a server's address is valid anywhere."""
        return self

    def open(self, config: EmbeddingConfig | None, *, on: str, text_column: str, vector_column: str) -> BulkStore:
        """Return the collection; as `LanceAddress.open`."""
        from akidb_mlx_chroma import MLXEmbeddingFunction
        from akidb_mlx_ray.chroma import BulkCollection, Server

        function = MLXEmbeddingFunction.from_config(config) if config else None
        server = Server(self.host, self.port)
        return BulkCollection(server, self.name, on, function, text_column, vector_column)


def parse_target(address: str) -> LanceAddress | ChromaAddress:
    """Return what an address names.

    Raises:
        InvalidInputError: it is not a valid address.
    """
    scheme, _, rest = address.partition("://")
    uri, _, name = rest.rstrip("/").rpartition("/")
    if scheme == "lancedb" and name and uri:
        return LanceAddress(uri, name)
    if scheme == "chroma" and name and uri:
        server = urlsplit(f"http://{uri}")
        try:
            port = server.port or CHROMA_PORT
        except ValueError as error:
            raise InvalidInputError(f"--to {address}: {error}") from error
        if server.hostname:
            return ChromaAddress(server.hostname, port, name)
    raise InvalidInputError(f"--to {address} is not a target; use {_FORMS}")
