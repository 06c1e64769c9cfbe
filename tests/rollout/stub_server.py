"""A small server with the parts of vLLM's and SGLang's HTTP interface that rollouts use, over a model of ours.

Tokens and log-probs are true: they come from `Sampler`. Weights change as there, by a folder named in a request.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax

from jaxalign import models
from jaxalign.rollout import Sampler

Answer = tuple[int, Any]


class StubServer:
    """Serves the model of a folder on a free port of the loopback; a context manager.

    Attributes:
      url: where it is.
      requests: (path, body) of all requests so far.
      reloads: whether it loads weights when told to, or only says so.
      alter: changes an answer before it is sent: (path, (status, JSON)) -> (status, JSON); for faults.
    """

    def __init__(self, folder: Any, *, alter: Callable[[str, Answer], Answer] | None = None) -> None:
        self.model = models.load_pretrained(folder)
        self.sampler = Sampler(self.model)
        self.adapters: dict[str, Any] = {}
        self.requests: list[tuple[str, Any]] = []
        self.reloads = True
        self.alter = alter or (lambda path, answer: answer)
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "StubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def bodies(self, path: str) -> list[Any]:
        """The bodies of all requests of a path."""
        return [body for found, body in self.requests if found == path]

    def answer(self, path: str, body: Any) -> Answer:
        """(status, JSON)."""
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ("tiny", *self.adapters)]}
        if path == "/v1/completions":
            return self._complete(body)
        if path == "/collective_rpc" and body["method"] == "reload_weights":
            return self._load(body["kwargs"]["weights_path"])
        if path == "/update_weights_from_disk":
            return self._load(body["model_path"])
        if path == "/reset_prefix_cache":
            return 200, None
        if path in ("/v1/load_lora_adapter", "/load_lora_adapter"):
            adapter, lora = models.load_adapter(body["lora_path"], self.model.config)
            self.adapters[body["lora_name"]] = Sampler(
                models.merge_adapter(self.model, models.attach(adapter, lora))
            )
            return 200, "Success: adapter added"
        if path in ("/v1/unload_lora_adapter", "/unload_lora_adapter"):
            del self.adapters[body["lora_name"]]
            return 200, "Success: adapter removed"
        return 404, {"detail": "Not Found"}

    def _load(self, folder: str) -> Answer:
        if self.reloads:
            self.sampler.update(models.split(models.load_pretrained(folder))[1])
        return 200, {"success": True, "message": ""}

    def _complete(self, body: Any) -> Answer:
        name = body.get("lora_path", body["model"])
        if name != "tiny" and name not in self.adapters:
            message = f"The model `{name}` does not exist."
            return 404, {"error": {"message": message, "type": "NotFoundError", "code": 404}}
        done = self.adapters.get(name, self.sampler).generate(
            [body["prompt"]],
            max_new_tokens=body["max_tokens"],
            key=jax.random.key(body["seed"]),
            temperature=body["temperature"],
            top_k=max(body["top_k"], 0),
            top_p=body["top_p"],
            min_p=body["min_p"],
            stop_tokens=body["stop_token_ids"],
            num_samples=body["n"],
        )
        choices = []
        for index, tokens in enumerate(done.token_lists()):
            logps = [float(x) for x in done.sampling_logps[index, : len(tokens)]]
            written = [f"token_id:{token}" for token in tokens]
            choices.append(
                {
                    "index": index,
                    "finish_reason": done.finish_reason[index],
                    "logprobs": {"tokens": written, "token_logprobs": logps},
                    "token_ids": tokens,
                }
            )
        return 200, {"choices": choices}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(None)

            def do_POST(self) -> None:
                self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _send(self, body: Any) -> None:
                with stub._lock:
                    stub.requests.append((self.path, body))
                    answer = stub.answer(self.path, body)
                status, answer = stub.alter(self.path, answer)
                text = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
