"""The models that a server offers, each with the one queue that all clients share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.cross_encoder import CrossEncoder
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.hub.registry import resolve
from akidb_mlx_plugin.providers import make_provider
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.serving.problems import ProblemError
from akidb_mlx_plugin.types import ModelInfo

# What each request decides; a default of the server would change the vectors of clients that rely on the model's.
_CLIENTS_CHOICE = (
    "dimension",
    "normalize",
    "pooling",
    "query_prompt",
    "document_prompt",
    "query_task",
    "document_task",
)
_MOST_DESCRIPTIONS = 64
# Loading is not what a deadline of requests is about; downloads come before it.
_LOADING_MS = 3_600_000.0

logger = logging.getLogger(__name__)
_Served = TypeVar("_Served", "ServedModel", "ServedReranker")


class ServedModel:
    """A model, its service, and what clients ask about it.

    Attributes:
        service: one queue for all clients.
        info: the model with its default settings.
        names: what clients may call it.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        """Find the model, downloading it if needed; loads no weights."""
        self.service = EmbeddingService(config)
        self.info = self.service.model_info()
        self.names = {self.info.model} | (_names(config.mlx.model) if config.mode == "mlx" else set())
        self._descriptions: dict[tuple[tuple[str, Any], ...], ModelInfo] = {}

    def describe(self, settings: Mapping[str, Any]) -> ModelInfo:
        """Describe the vectors that a client's settings give; blocks while it reads the checkpoint.

        Args:
            settings: values of the configuration's section "mlx", or of "mock".
        Raises:
            InvalidInputError: the model cannot do that.
        """
        key = tuple(sorted(settings.items()))
        if key not in self._descriptions:
            if len(self._descriptions) >= _MOST_DESCRIPTIONS:
                self._descriptions.clear()
            self._descriptions[key] = make_provider(self._config_with(settings)).model_info()
        return self._descriptions[key]

    def _config_with(self, settings: Mapping[str, Any]) -> EmbeddingConfig:
        config = self.service.config
        if config.mode == "mlx":
            return config.model_copy(update={"mlx": config.mlx.model_copy(update=dict(settings))})
        # The mock has no prompts.
        dimension = settings.get("dimension", config.mock.dimension)
        return config.model_copy(update={"mock": config.mock.model_copy(update={"dimension": dimension})})


class ServedReranker:
    """A reranker, and its one queue for all clients.

    Attributes:
        encoder: scores pairs of texts.
        info: the model.
        names: what clients may call it.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        """Find the model, downloading it if needed; loads no weights.

        Raises:
            InvalidInputError: it gives several scores per pair.
        """
        mlx = config.mlx
        self.encoder = CrossEncoder(
            mlx.model, device=mlx.device, dtype=mlx.dtype, cache_dir=mlx.cache_dir, keep_alive=mlx.keep_alive
        )
        self.info = self.encoder.model_info()
        self.names = _names(mlx.model) | {self.info.model}
        if self.info.dimension != 1:
            raise InvalidInputError(
                f"--reranker {mlx.model}: it gives {self.info.dimension} scores per pair, and texts have no one order"
            )


class ServedModels:
    """Every model of a server.

    Attributes:
        embedders: make vectors.
        rerankers: score texts by a query.
    """

    def __init__(self, configs: Sequence[EmbeddingConfig], rerankers: Sequence[EmbeddingConfig] = ()) -> None:
        """Find the models; loads no weights.

        Raises:
            InvalidInputError: a setting that is the client's choice, or two models of one name.
            ModelNotFoundError, DownloadError: a model cannot be had.
        """
        for config in configs:
            _refuse_clients_choice(config)
        self.embedders = [ServedModel(config) for config in configs]
        self.rerankers = [ServedReranker(config) for config in rerankers]
        self._embedders_by_name = _by_name(self.embedders, "--model")
        self._rerankers_by_name = _by_name(self.rerankers, "--reranker")
        self._loading: ServiceUnavailableError | None = ServiceUnavailableError("the models are being loaded")
        self._has_failed = False

    def find(self, name: str) -> ServedModel:
        """Return the embedding model of a name.

        Raises:
            ProblemError: there is none.
        """
        return _find(self._embedders_by_name, name, self.embedders)

    def find_reranker(self, name: str) -> ServedReranker:
        """Return the reranker of a name; raises as `find`."""
        return _find(self._rerankers_by_name, name, self.rerankers)

    @property
    def infos(self) -> list[ModelInfo]:
        """Descriptions of all models."""
        return [model.info for model in self.embedders] + [each.info for each in self.rerankers]

    def load(self) -> None:
        """Load the weights of every model, by embedding or scoring a word."""
        try:
            for model in self.embedders:
                model.service.embed_batch(["ready"], deadline_ms=_LOADING_MS)
            for reranker in self.rerankers:
                reranker.encoder.predict([("ready", "ready")], deadline_ms=_LOADING_MS)
            self._loading = None
        except Exception as error:
            # Merged into one batch with clients' texts, the word may meet an error of somebody else's that quotes them.
            reason = str(error) if isinstance(error, EmbeddingError) else type(error).__name__
            logger.error("a model could not be loaded: %s", reason)
            self._loading = ServiceUnavailableError(f"a model could not be loaded: {reason}")
            self._has_failed = True

    def check_ready(self) -> None:
        """Raise ServiceUnavailableError while a text could not be embedded or scored.

        After a failure it also tries again in the background, so that a later call may find the models loaded.
        """
        for model in self.embedders:
            model.service.health_check()
        for reranker in self.rerankers:
            reranker.encoder.health_check()
        # The thread may set it to None at any moment.
        loading = self._loading
        if loading is None:
            return
        if self._has_failed:
            self._has_failed = False
            threading.Thread(target=self.load, name="akidb-mlx-loading", daemon=True).start()
        raise loading

    def close(self, timeout_s: float) -> None:
        """Answer what is waiting and free the models, all at the same time."""
        closing: list[Callable[..., None]] = [model.service.close for model in self.embedders]
        closing += [each.encoder.close for each in self.rerankers]
        with ThreadPoolExecutor(max(1, len(closing))) as threads:
            for close in closing:
                threads.submit(close, timeout_s=timeout_s)


def _names(model: str) -> set[str]:
    """Return what clients may call a model: the name it was started with, its repository, its short name."""
    source = resolve(model)
    names = {model, source.repo or str(source.folder)}
    return names | {source.spec.name} if source.spec else names


def _by_name(models: Sequence[_Served], option: str) -> dict[str, _Served]:
    found: dict[str, _Served] = {}
    for model in models:
        for name in model.names:
            if name in found:
                raise InvalidInputError(f"{option}: {name!r} is given twice")
            found[name] = model
    return found


def _find(by_name: Mapping[str, _Served], name: str, models: Sequence[_Served]) -> _Served:
    model = by_name.get(name)
    if model is None:
        offered = ", ".join(repr(model.info.model) for model in models) or "none of this kind"
        raise ProblemError(404, f"no such model here; this server has {offered}", code="model_not_found", param="model")
    return model


def configs_for(models: Sequence[str | None], file: Path | None, keep_alive: float | None) -> list[EmbeddingConfig]:
    """Return a configuration for each model, from a file, the environment and the command line.

    Args:
        models: short names, repositories or folders; None for the configured model.
        file: a YAML file with the key "embedding".
        keep_alive: seconds that idle weights stay in memory.
    """
    # A client's setting in the same environment must not make the server its own client.
    given: dict[str, Any] = {"remote": {"url": None}}
    mlx = {} if keep_alive is None else {"keep_alive": keep_alive}
    return [
        EmbeddingConfig.load(file, {**given, "mlx": {**mlx, **({"model": model} if model else {})}}) for model in models
    ]


def _refuse_clients_choice(config: EmbeddingConfig) -> None:
    if config.mode == "user_provided":
        raise InvalidInputError("mode 'user_provided' has no model to serve; choose mode 'mlx'")
    for key in _CLIENTS_CHOICE:
        if getattr(config.mlx, key) is not None:
            raise InvalidInputError(
                f"mlx.{key} is for each client to choose, and would change the vectors of the others; "
                "remove it from the server's configuration and environment"
            )
