"""The embedding service: one model, many callers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.config import Device, EmbeddingConfig, Mode
from akidb_mlx_plugin.display import facts_table
from akidb_mlx_plugin.encoding import TextEncoder
from akidb_mlx_plugin.errors import DimensionMismatchError, InvalidInputError
from akidb_mlx_plugin.model_queue import close_queue, close_when_forgotten, open_queue
from akidb_mlx_plugin.providers import EmbeddingProvider, make_provider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, Kind, ModelInfo, Overflow, TextPiece
from akidb_mlx_plugin.validation import list_inputs


class EmbeddingService(TextEncoder):
    """Embeds texts for any number of threads and coroutines, merging requests that arrive at the same time.

    Creating one is free: the model loads with the first text. Usable as a context manager. A service that is never
    closed closes itself when it is garbage-collected, or when the interpreter exits.
    """

    @named_arguments
    def __init__(
        self,
        model_or_config: str | Path | EmbeddingConfig | None = None,
        *,
        model: str | Path | None = None,
        mode: Mode | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        pooling: str | Sequence[str] | None = None,
        device: Device | None = None,
        overflow: Overflow | None = None,
        trusted: bool = True,
        provider: EmbeddingProvider | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a service.

        Args:
            model_or_config: a model's name, repository or folder; or a whole configuration, which excludes the six
                arguments below. Defaults to the environment's value, else to the default model.
            model: the same by its name elsewhere: a model's name, repository or folder.
            mode: "mlx", "user_provided" or "mock".
            dimension: length of the vectors.
            normalize: whether to scale vectors to unit length. Defaults to the configuration, else to the checkpoint.
            pooling: how token vectors become one, overriding the checkpoint: one of `POOLING_MODES`, or several as a
                list or "cls+mean".
            device: "auto", "gpu" or "cpu".
            overflow: "truncate" cuts texts that are longer than the model takes, and counts them; "error" refuses them.
            trusted: False if the model's name comes from a stored collection; see `MLXProvider`.
            provider: replaces the provider that the configuration names; closed with the service.
            clock: replaces the system's clock in tests.
        Raises:
            InvalidInputError: an invalid value.
        """
        if model is not None and model_or_config is not None:
            raise InvalidInputError(f"the model is named twice: {model_or_config!r} and model={model!r}")
        config = model_or_config if model is None else model
        if not isinstance(config, EmbeddingConfig):
            config = EmbeddingConfig.from_arguments(
                config,
                mode=mode,
                dimension=dimension,
                normalize=normalize,
                pooling=pooling,
                device=device,
                overflow=overflow,
            )
        elif any(value is not None for value in (mode, dimension, normalize, pooling, device, overflow)):
            raise InvalidInputError(
                "pass a configuration, or mode, dimension, normalize, pooling, device and overflow, but not both"
            )
        self._config = config
        self._provider = provider or make_provider(config, trusted=trusted)
        self._queue = open_queue(self._provider, config, _model_label(config), clock=clock)
        self._when_forgotten = close_when_forgotten(self, self._queue, self._provider)

    @classmethod
    def from_config(cls, path: str | Path, *, trusted: bool = True) -> EmbeddingService:
        """Make a service from a YAML file and the environment, which overrides the file.

        Raises:
            InvalidInputError: no such file, or an invalid key or value in it.
        """
        return cls(EmbeddingConfig.load(path), trusted=trusted)

    def __enter__(self) -> EmbeddingService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"EmbeddingService({_model_label(self._config)!r}, mode={self._config.mode!r}, {state})"

    def _repr_html_(self) -> str:
        """Return the configuration and state for a notebook; loads and downloads nothing."""
        mlx = self._config.mlx if self._config.mode == "mlx" else None
        load_s = self._provider.load_seconds
        facts = {
            "mode": self._config.mode,
            "dimension": (mlx.dimension or "the model's") if mlx else None,
            "device": mlx.device if mlx else None,
            "batches": f"up to {self._config.mlx.batch_size} texts, slices of {self._config.mlx.batch_timeout_ms:g} ms",
            "model": "not loaded yet" if mlx and load_s is None else f"loaded in {load_s:.1f} s" if mlx else None,
            "waiting": f"{self._queue.waiting_texts:,} texts",
            "state": "closed" if self.closed else "open",
        }
        return facts_table(f"EmbeddingService: {_model_label(self._config)}", facts)

    @property
    def config(self) -> EmbeddingConfig:
        """The configuration it was made with."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether it has stopped accepting requests."""
        return self._queue.closed

    @named_arguments
    def embed_batch(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
        task: str | None = None,
        overflow: Overflow | None = None,
        deadline_ms: float | None = None,
    ) -> BatchEmbeddingResponse:
        """Embed texts and wait for the vectors.

        Args:
            texts: at least one; the empty string is a text.
            kind: which of the model's prompts precedes each text.
            normalize: whether to scale vectors to unit length. Defaults to the configuration, else to the checkpoint.
            dimension: keep this many leading components. Defaults to the configuration, else to the model's default.
            prompt: replaces the prompt that `kind` selects.
            task: name of another of the model's prompts, replacing the one that `kind` selects.
            overflow: "truncate" cuts texts that are longer than the model takes; "error" refuses the request. Defaults
                to the configuration.
            deadline_ms: longest wait. Defaults to the configuration.
        Returns:
            (N, D) float32 in the order of the texts, and their usage.
        Raises:
            InvalidInputError: an invalid text or argument; nothing was computed.
            ServiceUnavailableError: closed, full, past the deadline, or forked.
            ModelNotFoundError, DownloadError: the model could not be loaded; the next call tries again.
        """
        request = _make_request(texts, kind, normalize, dimension, prompt, task, overflow)
        return self._queue.embed(request, deadline_ms=deadline_ms)

    def submit(
        self,
        text: str | Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
        task: str | None = None,
        overflow: Overflow | None = None,
        deadline_ms: float | None = None,
        bulk: bool = False,
    ) -> Future[BatchEmbeddingResponse]:
        """Queue one text or several and return at once. Arguments and errors are those of `embed_batch`.

        Args:
            bulk: whether these are part of larger work, so that searches go ahead of them as they go ahead of requests
                of many texts.
        Returns:
            A future of the response, with one row per text. Canceling it withdraws the request, even while the model
            is working on it. Its callbacks run on the service's own thread and should be quick.
        """
        texts = [text] if isinstance(text, str) else text
        request = _make_request(texts, kind, normalize, dimension, prompt, task, overflow)
        return self._queue.submit(request, deadline_ms=deadline_ms, bulk=bulk)

    def submit_when_room(
        self,
        text: str | Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
        task: str | None = None,
        overflow: Overflow | None = None,
        deadline_ms: float | None = None,
        bulk: bool = False,
    ) -> Future[BatchEmbeddingResponse]:
        """Queue texts like `submit`, but wait in line for room in a full queue instead of being rejected.

        For bulk work, which can wait where a search cannot. This also returns at once: waiting for the future includes
        waiting for room, and canceling it leaves the line. The deadline counts from the moment there is room.
        """
        texts = [text] if isinstance(text, str) else text
        request = _make_request(texts, kind, normalize, dimension, prompt, task, overflow)
        return self._queue.submit(request, deadline_ms=deadline_ms, wait_for_room=True, bulk=bulk)

    async def aembed_batch(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
        task: str | None = None,
        overflow: Overflow | None = None,
        deadline_ms: float | None = None,
    ) -> BatchEmbeddingResponse:
        """Embed texts without blocking the event loop. Arguments and errors are those of `embed_batch`.

        Canceling the task withdraws the request.
        """
        request = _make_request(texts, kind, normalize, dimension, prompt, task, overflow)
        return await self._queue.aembed(request, deadline_ms=deadline_ms)

    def model_info(self) -> ModelInfo:
        """Describe the model and its vectors; loads no weights, but downloads the model if necessary."""
        return self._provider.model_info()

    def split(self, text: str, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text into pieces that the model takes whole; loads no weights.

        A piece ends after a paragraph if one ends in the second half of what fits, else after a sentence, else after a
        word, else between two characters. Only a single character of more tokens than fit, such as a letter under
        hundreds of accents, is cut.

        Args:
            text: of any length; the empty one has no pieces.
            max_tokens: most tokens of a piece, with the model's prompt for documents and special tokens. Defaults to
                what the model takes.
            overlap: most tokens at the end of a piece that the next one repeats, up to half of a piece. Without any,
                the pieces joined are the text.
        Raises:
            InvalidInputError: not a text, max_tokens or overlap are out of range, or no model embeds here.
            ModelNotFoundError, DownloadError: the model's tokenizer could not be loaded.
        """
        return self._provider.split(text, max_tokens=max_tokens, overlap=overlap)

    def check_lengths(self, texts: Sequence[str], names: Sequence[str] | None = None) -> None:
        """Check that the model takes each document whole, if the configuration refuses those that it would cut.

        In mode "mock" or with a server nothing is checked here: a server checks every request itself.

        Args:
            texts: any number.
            names: what to call each in the message; default to their positions.
        Raises:
            InvalidInputError: one is too long.
        """
        if self._config.mlx.overflow == "error" and texts:
            self._provider.check_lengths(_make_request(texts, "document", None, None, None, None, "error"), names)

    def health_check(self) -> None:
        """Check that texts can be embedded; loads nothing.

        Raises:
            ServiceUnavailableError: closed, forked, past a deadline, the model could not be loaded, or the worker has
                died since the last check (it has been replaced).
        """
        self._queue.health_check()
        self._provider.health_check()

    def validate_collection_dimension(self, expected: int) -> None:
        """Check that this service's vectors fit a collection, before anything is embedded.

        Args:
            expected: length of the vectors in the collection.
        Raises:
            DimensionMismatchError: this service makes vectors of another length.
            InvalidInputError: not a positive integer.
        """
        if not isinstance(expected, int) or isinstance(expected, bool) or expected < 1:
            raise InvalidInputError(f"a collection's dimension must be a positive integer, got {expected!r}")
        info = self.model_info()
        # 0: the user provides the vectors and has not given their length.
        if info.dimension not in (0, expected):
            raise DimensionMismatchError(
                f"the collection holds vectors of {expected} dimensions and {info.model} makes {info.dimension}; "
                f"use the model it was made with, dimension={expected} where the model allows it, or a new collection",
                expected=expected,
                actual=info.dimension,
            )

    def close(self, *, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Stop accepting requests, stop the threads and release the model; safe to call twice.

        Args:
            drain: whether to answer waiting requests first; otherwise they fail with `ServiceUnavailableError`.
            timeout_s: requests still pending after this time fail as well.
        """
        self._when_forgotten.detach()
        close_queue(self._queue, self._provider, drain=drain, timeout_s=timeout_s)


def shared_service(config: EmbeddingConfig, *, trusted: bool = True) -> EmbeddingService:
    """Return this process's only service for a configuration; loads nothing.

    For the adapters' functions, which their hosts rebuild with every write. It need not be closed.

    Args:
        config: equal configurations share a service.
        trusted: see `MLXProvider`; services are shared only if this is equal too.
    """
    key = (config, trusted)
    service = _shared.get(key)
    if service is None or service.closed:
        # No lock, which a fork could leave held: of two made at the same time one is kept, and making one is free.
        _shared.pop(key, None)
        service = _shared.setdefault(key, EmbeddingService(config, trusted=trusted))
    return service


_shared: dict[tuple[EmbeddingConfig, bool], EmbeddingService] = {}


def _make_request(
    texts: Sequence[str],
    kind: Kind,
    normalize: bool | None,
    dimension: int | None,
    prompt: str | None,
    task: str | None,
    overflow: Overflow | None,
) -> BatchEmbeddingRequest:
    return BatchEmbeddingRequest(list_inputs(texts), kind, normalize, dimension, prompt, task, overflow)


def _model_label(config: EmbeddingConfig) -> str:
    if config.mode == "mlx":
        return config.mlx.model
    return config.user_provided.model or config.mode if config.mode == "user_provided" else config.mode
