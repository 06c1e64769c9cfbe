"""A chat-completions endpoint on the loopback, which answers as a test tells it to."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any, *, prompt_tokens: int = 10, completion_tokens: int = 2) -> dict[str, Any]:
    """A reply as such endpoints give it."""
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


class ChatServer:
    """A context manager; serves on a free port.

    Args:
      answer: (number of the request from 0, its body) -> (status, JSON or raw text, further headers).

    Attributes:
      base_url: where it is.
      requests: (path, headers, body) of all requests so far.
      most_at_once: requests that ran at the same time.
    """

    def __init__(self, answer: Callable[[int, Any], tuple[int, Any, dict[str, str]]]) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.most_at_once = 0
        self._running, self._lock, self._answer = 0, threading.Lock(), answer
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def bodies(self) -> list[Any]:
        """The bodies of all requests so far."""
        return [body for _, _, body in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(text) if text else None
                with server._lock:
                    number = len(server.requests)
                    server.requests.append((self.path, dict(self.headers), body))
                    server._running += 1
                    server.most_at_once = max(server.most_at_once, server._running)
                answer = server._answer(number, body)
                # Before the client hears it: its next request is not at the same time.
                with server._lock:
                    server._running -= 1
                with suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
                    self._send(*answer)

            def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
                text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(text))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        return Handler
