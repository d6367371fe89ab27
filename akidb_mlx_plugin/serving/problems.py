"""Answers to requests that failed, in the form of OpenAI's API."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from akidb_mlx_plugin.errors import (
    DeadlineExceededError,
    DownloadError,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServiceUnavailableError,
)

_RETRY_AFTER_S = 1


class ProblemError(Exception):
    """A request that cannot be answered as asked.

    Attributes:
        status: of the HTTP response.
        param: the field of the body that is wrong; None if it is none of them.
        code: what a program can compare.
    """

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        self.status = status
        self.param = param
        self.code = code
        super().__init__(message)

    def to_response(self) -> Response:
        """Return the answer: the message in OpenAI's form, and when to come back if that helps."""
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        content = {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
        headers = {"Retry-After": str(_RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(content, self.status, headers)


def to_problem(error: Exception, param: str | None = None) -> ProblemError:
    """Return the answer for an error of this package; any other one is hidden, because it may quote a text.

    Args:
        error: what went wrong.
        param: the field to name if the input was invalid.
    """
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, InvalidInputError):
        return ProblemError(400, str(error), code="invalid_value", param=param)
    if isinstance(error, QueueFullError):
        return ProblemError(429, "the queue is full; try again later", code="queue_full")
    if isinstance(error, DeadlineExceededError):
        return ProblemError(503, str(error), code="deadline_exceeded")
    if isinstance(error, ServiceUnavailableError | ModelNotFoundError | DownloadError):
        return ProblemError(503, str(error), code="unavailable")
    return ProblemError(500, f"the model failed with {type(error).__name__}", code="internal_error")
