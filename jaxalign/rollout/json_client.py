"""JSON over HTTP, with retries, timeouts and one-line errors."""

import http.client
import json
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from jaxalign.errors import UserError

# Answers of a server (or a proxy before it) that is starting, overloaded or restarting.
BUSY = (429, 502, 503, 504)


class JsonClient:
    """A client of one server; safe to use from several threads.

    Args:
      url: http://host:port, with or without a path.
      api_key: sent as a bearer token; empty for none.
      timeout: seconds to wait for a reply.
      retries: number of times to resend a request to an unreachable or busy server.
      backoff: seconds before the first retry; each next one waits twice as long, at most 30.
    """

    def __init__(
        self, url: str, *, api_key: str = "", timeout: float = 600.0, retries: int = 5, backoff: float = 0.5
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._parts = urlsplit(self.url)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._aborted = threading.Event()

    def get(self, path: str) -> Any:
        """The JSON at a path; for errors see `post`."""
        return self._request("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """The JSON reply to a JSON body; None if the reply is empty.

        Raises:
          UserError: no server, no reply in time, an HTTP error (with the server's message), or invalid JSON.
        """
        return self._request("POST", path, json.dumps(body).encode())

    def abort(self) -> None:
        """Aborts running requests in all threads: they raise. No request is sent until `reopen`."""
        self._aborted.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError, AttributeError):  # not connected yet, or already closed
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def reopen(self) -> None:
        """Allows requests again."""
        self._aborted.clear()

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        wait, reason = self._backoff, ""
        for attempt in range(self._retries + 1):
            if self._aborted.wait(wait if attempt else 0.0):
                break
            wait = min(2 * wait, 30.0) if attempt else wait
            try:
                status, text = self._once(method, path, body)
            except TimeoutError:
                raise UserError(
                    f"{self.url}{path}: no reply within {self._timeout:g} seconds (rollout.engine.timeout)"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                continue
            if status not in BUSY:
                return self._answer(path, status, text)
            reason = f"HTTP {status}: {_message(text)}"
        raise UserError(
            f"{self.url}: no reply from the server ({reason}; tries: {self._retries + 1}); check "
            "rollout.engine.url, and that the server is running"
        )

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, str]:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.netloc, timeout=self._timeout)
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            if self._aborted.is_set():
                raise ConnectionAbortedError("another request failed")
            connection.request(method, self._parts.path + path, body, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", errors="replace")
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, path: str, status: int, text: str) -> Any:
        if status >= 300:
            raise UserError(f"{self.url}{path}: HTTP {status}: {_message(text)}")
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UserError(f"{self.url}{path}: expected JSON, got {text[:60]!r}") from None


def _message(text: str) -> str:
    """What an error says, in one line of at most 300 characters."""
    try:
        body = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(body, dict) and body.get(name):
                body = body[name]
        text = body if isinstance(body, str) else json.dumps(body)
    except json.JSONDecodeError:
        pass
    return " ".join(text.split())[:300] or "no message"
