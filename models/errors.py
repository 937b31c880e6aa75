"""The tree of faults that meterbridge names.

    DomainError
    ├── InvalidInput       what a person or program sent cannot be used; says where and what to do
    ├── NotFound           no such thing, or none that this caller may see
    ├── Conflict           it contradicts something that already stands
    ├── Forbidden          the caller may not do this
    ├── Unauthorized       the caller did not say who they are
    ├── UpstreamError      Azure or a receiver did not answer as agreed (``retryable`` says if later helps)
    ├── Unavailable        our own storage is away, full or busy; nothing was accepted
    └── InvariantBroken    our own reasoning is wrong; the transaction stops

The HTTP API renders them in one handler (``collector/api/problems.py``), the command line prints
``message`` on one line. Faults inside batch data are values, not exceptions.
"""

from __future__ import annotations


class DomainError(Exception):
    """Something that went wrong in words a user understands: what, to what, what to do next."""

    error = "error"

    def __init__(self, message: str, *, error: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if error is not None:
            self.error = error


class InvalidInput(DomainError):
    """The input cannot be used; ``error`` is its class (CONTRACT.md "Error classes"), ``field`` where it is, if it is in one."""

    error = "invalid_value"

    def __init__(self, message: str, *, error: str | None = None, field: str = "") -> None:
        super().__init__(message, error=error)
        self.field = field


class NotFound(DomainError):
    """There is no such object, or it belongs to a workspace the caller may not see."""

    error = "not_found"


class Conflict(DomainError):
    """The input contradicts what already stands."""

    error = "conflict"


class Forbidden(DomainError):
    """The caller is known and may not do this."""

    error = "forbidden"


class Unauthorized(DomainError):
    """The caller gave no key, or one that does not work."""

    error = "unauthorized"


class UpstreamError(DomainError):
    """A service we depend on did not answer as agreed."""

    error = "upstream"

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class Unavailable(DomainError):
    """Our storage is away, full or busy; the caller may send the same again after a while."""

    error = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 5) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def told(fault: DomainError) -> str:
    """What a person elsewhere may read of a fault: what a database says of itself (host, user, file) stays in the log."""
    if isinstance(fault, Unavailable) and fault.__cause__ is not None:
        return "the database does not answer; try again in a moment"
    return fault.message


class InvariantBroken(DomainError):
    """A rule that must always hold did not: a defect of ours, never of the data."""

    error = "invariant_broken"
