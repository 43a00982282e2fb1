"""What AWS refuses, said as smkit says things: what happened, where, and how to mend it.

This room reads errors of botocore by their names and codes, so that it needs no boto3 to be imported. It makes no call
and knows no service.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from smkit.errors import ConfigurationError, SmkitError

_EXPIRED = frozenset(
    {
        *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "ExpiredTokenError"),
        *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"),
        *("LoginRefreshRequired", "LoginTokenLoadError"),
    }
)
_SIGN_IN_AGAIN = frozenset({"UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"})
_MISSING = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError", "SSOError"}
)
_DELETED_KEY = frozenset({"InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"})
_UNKNOWN_KEY = _DELETED_KEY | {
    *("AuthFailure", "OptInRequired", "SignatureDoesNotMatch", "InvalidSignatureException"),
    *("IncompleteSignature", "InvalidToken"),
}
_DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "AuthorizationError", "403"}
)
_THROTTLED = frozenset(
    {
        *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "RequestThrottled"),
        *("TooManyRequestsException", "RequestLimitExceeded", "SlowDown", "PriorRequestNotComplete", "429", "503"),
    }
)
_WRONG_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_UNREACHABLE = frozenset(
    {
        *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "SSLError"),
        *("ProxyConnectionError", "HTTPClientError", "ConnectionError", "ResponseStreamingError"),
    }
)
_S3_ACTIONS = {
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}
"""What S3 asks permission for, which it often does not say when it refuses."""


class _Saying(NamedTuple):
    what: str
    fix: str


@contextlib.contextmanager
def aws_errors(
    doing: str, *, kind: type[SmkitError] = ConfigurationError, profile_name: str | None = None
) -> Iterator[None]:
    """Raise what botocore raises inside as an error of smkit; its `__cause__` is the original.

    Args:
        doing: What the caller is about to do, as it continues "where:": `upload of the source to s3://bucket/key`.
        kind: The class to raise.
        profile_name: The profile in use, for the commands that the message gives.
    """
    try:
        yield
    except Exception as error:
        if not _is_from_aws(error):
            raise
        saying = _saying(error, profile_name)
        raise kind(saying.what, where=doing, fix=saying.fix) from error


def error_code(error: BaseException | None) -> str:
    """Return AWS's code of an error (`ResourceNotFound`), botocore's class where AWS said nothing, else nothing.

    An error of smkit is asked for its cause.
    """
    while isinstance(error, SmkitError):
        error = error.__cause__
    if error is None or not _is_from_aws(error):
        return ""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code) if code else type(error).__name__


def is_expired(error: BaseException) -> bool:
    """Whether the credentials have run out, so that the same call can succeed with renewed ones."""
    return error_code(error) in _EXPIRED


def is_without_credentials(error: BaseException) -> bool:
    """Whether the credentials are gone, or half renewed."""
    return error_code(error) in _MISSING | _DELETED_KEY


def is_denied(error: BaseException) -> bool:
    """Whether AWS denies without saying who may not do what: a permission is missing, or it is somebody else's."""
    return error_code(error) in _DENIED and "not authorized to perform" not in str(error)


def is_wrong_clock(error: BaseException) -> bool:
    """Whether AWS refuses the time of a request: by a code of its own, or as a signature of another time."""
    text = str(error).lower()
    is_old = "signature expired" in text or "signature not yet current" in text
    return error_code(error) in _WRONG_CLOCK or (error_code(error) in _UNKNOWN_KEY and is_old)


def is_unanswered(error: BaseException) -> bool:
    """Whether AWS did not say what has become of a call, so that it may have been carried out, or may be yet."""
    return error_code(error) in _UNREACHABLE or _status(error) >= 500


def is_passing(error: BaseException) -> bool:
    """Whether the same call can succeed a little later: AWS was not reached, busy, or failed by itself."""
    return error_code(error) in _THROTTLED or is_unanswered(error)


def _is_from_aws(error: BaseException) -> bool:
    return any(base.__module__.startswith(("botocore.", "boto3.", "s3transfer.")) for base in type(error).__mro__)


def _status(error: BaseException | None) -> int:
    while isinstance(error, SmkitError):
        error = error.__cause__
    response = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def _saying(error: Exception, profile_name: str | None) -> _Saying:
    code = error_code(error)
    option = f" --profile {profile_name}" if profile_name else ""
    if code in _EXPIRED:
        return _expired(error, code, option)
    if code in _MISSING:
        return _Saying(
            f"no usable AWS credentials: {_one_line(error)}",
            "sign in with 'aws configure' or 'aws sso login', or name a profile that has credentials: "
            "launch(profile_name=...) or AWS_PROFILE",
        )
    if is_wrong_clock(error):
        return _Saying(f"AWS refuses the time of this machine ({code}): {_message(error)}", "set this machine's clock")
    if code in _UNKNOWN_KEY:
        return _Saying(
            f"AWS does not accept these credentials here ({code}): {_message(error)}",
            f"see who you are with 'aws sts get-caller-identity{option}'; the key may be deleted or mistyped, "
            "or your account has not enabled this region",
        )
    if code in _DENIED:
        return _denied(error, option)
    if code in _THROTTLED:
        return _Saying(
            f"AWS is throttling {_operation(error)} ({code}), and went on when it was asked again and again",
            "wait a minute and repeat; fewer launches at once help, or a higher request quota",
        )
    if code in _UNREACHABLE:
        return _Saying(
            f"AWS cannot be reached: {_one_line(error)}",
            "check the network, the proxy (HTTPS_PROXY), the spelling of the region and AWS_ENDPOINT_URL, then repeat",
        )
    if code in ("ProfileNotFound", "ConfigParseError", "ConfigNotFound"):
        return _Saying(_one_line(error), "mend ~/.aws/config or name another profile; 'aws configure list-profiles'")
    if _status(error) >= 500:
        return _Saying(
            f"AWS has failed by itself at {_operation(error)} ({code}), again and again: {_message(error)}",
            "repeat in a minute; if it stays so, look at https://health.aws.amazon.com and at proxies on the way",
        )
    return _Saying(f"AWS refused {_operation(error)} ({code}): {_message(error)}", "mend what AWS says, then repeat")


def _expired(error: Exception, code: str, option: str) -> _Saying:
    fix = f"renew them as you got them, or with 'aws sso login{option}'; then repeat"
    if code in _SIGN_IN_AGAIN:
        fix = f"'aws sso login{option}', then repeat"
    elif code.startswith("Login"):
        fix = f"'aws login{option}', then repeat"
    return _Saying(f"the AWS credentials have expired ({code}): {_message(error)}", fix)


def _denied(error: Exception, option: str) -> _Saying:
    message = _message(error)
    found = re.search(r"(arn:\S+) is not authorized to perform: ([\w-]+:\w+)(?: on resource: (\S+))?", message)
    if found:
        caller, action, resource = found.groups()
        on = f" on {resource}" if resource else ""
        return _Saying(
            f"{caller} may not {action}{on}: {message}",
            f"ask for the permission {action}, or use a profile that has it (profile_name=...)",
        )
    operation = _operation(error)
    who = f"see who you are with 'aws sts get-caller-identity{option}' and ask for"
    if operation not in _S3_ACTIONS:
        return _Saying(f"AWS denies {operation}: {message}", f"{who} the permission to do it")
    action = _S3_ACTIONS[operation]
    return _Saying(
        f"AWS denies {operation}, which needs {action}: {message}",
        f"{who} {action}; a bucket of another account is denied as well",
    )


def _operation(error: Exception) -> str:
    return str(getattr(error, "operation_name", "the call"))


def _message(error: Exception) -> str:
    """Return what AWS itself said, without botocore's words around it."""
    response = getattr(error, "response", None)
    message = response.get("Error", {}).get("Message") if isinstance(response, dict) else None
    return str(message or _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
