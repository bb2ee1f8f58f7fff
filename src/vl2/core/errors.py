"""The error tree: everything that `vl2` raises for someone to act on.

A message says what went wrong, the value, the limit and what to do. `assert` is for our own bugs.
The server maps these classes to HTTP statuses in one table (`server/errors.py`); the CLI prints a `SetupError` as one
line and exits with code 2.
"""

from __future__ import annotations


class VL2Error(Exception):
    """Root of the tree. `code` is the stable, machine-readable name of the error."""

    code = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """`param` names the field of the request or the option that the message is about."""
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(VL2Error):
    """The request itself is wrong; sending it again unchanged cannot help."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field has a wrong type or value."""


class InvalidImage(RequestError):
    """The bytes are not a picture that can be decoded within the limits."""

    code = "invalid_image"


class ContextLengthExceeded(RequestError):
    """Prompt (and requested answer) do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthorized(RequestError):
    """No valid API key was sent."""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The request comes from where none is taken from: a web page, or a name that is not ours."""

    code = "forbidden"


class NotFound(RequestError):
    """There is no such object for this client; other clients' objects are told in the same words."""

    code = "not_found"


class WrongMediaType(RequestError):
    """The body is not of the type that the route reads."""

    code = "unsupported_media_type"


class UnknownModel(RequestError):
    """The request names a model that is not served here."""

    code = "model_not_found"


class TooLarge(RequestError):
    """The body or a downloaded picture is over its size limit."""

    code = "too_large"


class CapacityError(VL2Error):
    """Right request, wrong moment: try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(CapacityError):
    """This key's own limit; others are served on."""

    code = "rate_limit_exceeded"


class NotReady(CapacityError):
    """The engine is loading, or being restarted."""

    code = "engine_not_ready"


class DeadlineExceeded(CapacityError):
    """The request's own deadline passed before it was answered."""

    code = "deadline_exceeded"


class EngineError(VL2Error):
    """The engine failed while it worked on the request."""

    code = "engine_error"


class SetupError(VL2Error):
    """Checkpoint, configuration or machine: `vl2` cannot start like this."""

    code = "setup_error"


class CheckpointError(SetupError):
    """A checkpoint file is missing, truncated, misshapen or unsupported."""

    code = "checkpoint_error"
