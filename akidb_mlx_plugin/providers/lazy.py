"""A model shared across the process that loads on first use and is released when idle, and at the end."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.providers.idle import IdleRelease
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse


class Loaded(Protocol):
    """A model in memory."""

    load_seconds: float

    def close(self) -> None:
        """Free the weights."""


Model = TypeVar("Model", bound=Loaded)


class LazyModel(Generic[Model]):
    """Acquires a model for the first caller; thread-safe."""

    def __init__(
        self, acquire: Callable[[], Model], release: Callable[[Model], None], keep_alive_s: float = -1.0
    ) -> None:
        """Store how the model is acquired and released; loads nothing.

        Args:
            acquire: loads it.
            release: frees it.
            keep_alive_s: how long it may be idle before it is freed; 0 frees it after each use, below 0 never.
        """
        self._acquire = acquire
        self._release = release
        self._idle = IdleRelease(keep_alive_s, self._detach)
        self._loading = threading.Lock()
        self._failure: Exception | None = None
        self._closed = False
        self.model: Model | None = None
        """The model; None while none is loaded."""
        self.load_seconds: float | None = None
        """How long it took to load; None if none is loaded."""

    @contextmanager
    def use(self) -> Iterator[Model]:
        """Hold the model meanwhile, loading it if needed; errors as for `load`."""
        with self._idle.use():
            yield self.load()

    def load(self) -> Model:
        """Return the model, loading it if needed.

        Raises:
            ServiceUnavailableError: closed.
            ModelNotFoundError, DownloadError: it could not be loaded; the next call tries again.
        """
        with self._loading:
            if self._closed:
                raise ServiceUnavailableError("the provider of this model is closed")
            if self.model is None:
                self.model = self._try_to_acquire()
                self.load_seconds = self.model.load_seconds
            model = self.model
        # Checked without the lock: either `close` got the lock, or it had already set this.
        if self._closed:
            self.close()
            raise ServiceUnavailableError("the provider was closed while its model was being loaded")
        return model

    def health_check(self) -> None:
        """Raise ServiceUnavailableError if the last attempt to load the model failed."""
        if self._failure is not None:
            raise ServiceUnavailableError(
                f"the model could not be loaded: {self._failure}; the next text tries again"
            ) from self._failure

    def close(self) -> None:
        """Release the model. A load in progress releases it itself when done."""
        self._closed = True
        self._idle.stop()
        if self._loading.acquire(blocking=False):
            try:
                model, self.model = self.model, None
            finally:
                self._loading.release()
            if model is not None:
                self._release(model)

    def _detach(self) -> Callable[[], None] | None:
        """Take the idle model away, and return what frees it; the next use loads it again."""
        with self._loading:
            model, self.model = self.model, None
            self.load_seconds = None
        return None if model is None else partial(self._release, model)

    def _try_to_acquire(self) -> Model:
        try:
            model = self._acquire()
        except Exception as error:
            self._failure = error
            raise
        self._failure = None
        return model


class LazyProvider(EmbeddingProvider, Generic[Model]):
    """A provider whose model is a `LazyModel`; what is loaded, and what it computes, is a subclass's."""

    def __init__(self, keep_alive_s: float) -> None:
        """Load nothing; `keep_alive_s` as for `LazyModel`."""
        self._lazy: LazyModel[Model] = LazyModel(self._acquire, _release, keep_alive_s)

    @property
    def load_seconds(self) -> float | None:  # type: ignore[override]  # read only
        """How long the model took to load; None if none is loaded."""
        return self._lazy.load_seconds

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Compute one request; loads the model if needed."""
        return self.embed_requests([request])[0]

    def health_check(self) -> None:
        """Raise ServiceUnavailableError if the last attempt to load the model failed."""
        self._lazy.health_check()

    def close(self) -> None:
        """Release the model. A load in progress releases it itself when done."""
        self._lazy.close()

    @abstractmethod
    def _acquire(self) -> Model:
        """Return the process's only such model, loading it if needed."""


def _release(model: Loaded) -> None:
    from akidb_mlx_plugin.inference.shared import release_model

    release_model(model)
