"""One request to an endpoint, with the API key.

The key is read from an environment variable at each request. It is sent to the endpoint and nowhere else: redirects are
not followed, and it stands in no message or repr, also where a server repeats it.
"""

import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

import jaxalign
from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.judging.endpoint_config import EndpointConfig

# Statuses of a server that is overloaded, starting or restarting; 5xx besides.
BUSY = (408, 409, 425, 429)


class Sender:
    """Sends requests to the endpoint of a configuration; safe to use from several threads."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._opener = urllib.request.build_opener(_NoRedirects)

    def once(self, data: bytes) -> tuple[str, float, dict[str, Any] | None]:
        """Sends one request.

        Returns:
          What went wrong, in one line; seconds that the server asks to wait; and its answer, None where it may be
          asked again.

        Raises:
          UserError: the server refuses.
          ConfigError: the key cannot be sent.
        """
        config = self._config
        key = _api_key(config.api_key_env)
        headers = {"Content-Type": "application/json", "User-Agent": f"jaxalign/{jaxalign.__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(config.url, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=config.timeout) as response:
                text = response.read().decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error, key)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last of a wrong host name
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                return f"no answer within {config.timeout:g} seconds", 0.0, None
            return _line(str(cause) or type(cause).__name__, key), 0.0, None
        try:
            answer = json.loads(text)
        except ValueError:
            return f"expected JSON, got {_line(text, key)[:60]!r}", 0.0, None
        # Some proxies say 200 to an error of the server behind them.
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
            return _message(text, key), 0.0, None
        return "", 0.0, answer if isinstance(answer, dict) else {}

    def _refused(self, error: urllib.error.HTTPError, key: str) -> tuple[str, float, None]:
        """As `once`, of a status that may be tried again.

        Raises:
          UserError: one that may not.
        """
        try:
            text = error.read().decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        reason = f"HTTP {error.code}: {_message(text, key)}"
        if error.code in BUSY or error.code >= 500:
            return reason, _retry_after(error.headers.get("Retry-After", "")), None
        name = self._config.api_key_env
        if error.code in (401, 403):
            reason += (
                f"; check the API key in {name}"
                if key
                else f"; no API key was sent ({name or 'api_key_env'} is empty)"
            )
        raise UserError(f"{self._config.url}: {reason}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: urllib would send the key on to wherever it leads."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _api_key(variable: str) -> str:
    """The key in an environment variable; empty for none.

    Raises:
      ConfigError: it cannot stand in a header. The message does not show it.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not all("!" <= sign <= "~" for sign in key):
        raise ConfigError(
            f"environment variable {variable}: expected an API key of ASCII characters without spaces"
        )
    return key


def _retry_after(value: str) -> float:
    """Seconds to wait, of a Retry-After header: a number of them or a date; 0 where it is neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _message(text: str, key: str) -> str:
    """What an error says, in one line of at most 300 characters."""
    try:
        body = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(body, dict) and body.get(name):
                body = body[name]
        text = body if isinstance(body, str) else json.dumps(body)
    except ValueError:
        pass
    return _line(text, key)[:300] or "no message"


def _line(text: str, key: str) -> str:
    """One line, without the key, which some servers repeat."""
    return " ".join((text.replace(key, "***") if key else text).split())
