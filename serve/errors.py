"""The errors a client can meet, and the one place that turns them into OpenAI's error object.

ApiError
├── BadRequest 400          the request is not one we understand or allow
│   ├── ContextTooLong 400  it does not fit the model's context
│   └── ContentFiltered 400 a rule of the policy refuses it
├── Unauthorized 401        no key, or a key we do not know
├── Forbidden 403           a key we know, without the role that the route needs
├── NotFound 404            route, model, or instance in the PACS
├── MethodNotAllowed 405
├── Conflict 409            what it would change is no longer as it was
├── TooLarge 413            body, image count or pixels over a limit
├── UnsupportedMedia 415    a media type that we do not take
├── UnusableImage 422       the type is right, the bytes are not an image we can or may use
├── Overloaded 429
├── Unavailable 503         the engine is not ready, or a stage failed closed
│   └── SourceUnavailable   the PACS or host that an image is to come from does not answer
├── AuditUnavailable 503     the record is not on disk: nothing is answered without one
├── GuardFailed 503         a guardrail broke: what it did not pass is withheld
└── InternalError 500       anything unforeseen; says nothing about itself

Messages are fixed wording: never ``str(exception)``, never the client's own input.
"""

from __future__ import annotations

import json
from typing import ClassVar


class ApiError(Exception):
    """An answer other than 200. ``code`` is stable and machine-readable."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: str = "internal_error"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code

    def body(self) -> bytes:
        """OpenAI's error object, as JSON bytes."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}).encode()

    def headers(self) -> dict[str, str]:
        """Response headers. openai-python retries 408, 409, 429 and 5xx unless told otherwise."""
        headers = {"content-type": "application/json"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        else:
            headers["x-should-retry"] = "false"
        return headers


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class ContentFiltered(BadRequest):
    code = "content_filter"


class Unauthorized(ApiError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    status = 403
    type = "permission_error"
    code = "role_missing"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class TooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


def too_many_pixels(limit: int) -> TooLarge:
    """Of one image, whatever it came in and before or after it was decoded."""
    return TooLarge(f"An image may have {limit} pixels.")


class UnsupportedMedia(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class UnusableImage(ApiError):
    status = 422
    type = "invalid_request_error"
    code = "unusable_image"


class Overloaded(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    retry_after_s = 1


class Unavailable(ApiError):
    status = 503
    type = "service_unavailable"
    code = "engine_unavailable"
    retry_after_s = 5


class SourceUnavailable(Unavailable):
    code = "image_source_unavailable"


class AuditUnavailable(ApiError):
    status = 503
    type = "service_unavailable"
    code = "audit_unavailable"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The audit store cannot be written; without a record nothing is answered.")


class GuardFailed(ApiError):
    status = 503
    type = "service_unavailable"
    code = "guardrail_failed"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("A guardrail failed; what it did not pass was withheld.")


class InternalError(ApiError):
    def __init__(self) -> None:
        super().__init__("The server could not complete this request. It was not answered.")
