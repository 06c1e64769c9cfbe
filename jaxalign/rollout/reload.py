"""How each kind of server loads new weights.

vLLM: `reload_weights` through `/collective_rpc`, which it has when started with VLLM_SERVER_DEV_MODE=1; adapters
through `/v1/load_lora_adapter`, with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
SGLang: `/update_weights_from_disk`; adapters through `/load_lora_adapter`, with --enable-lora.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.rollout.json_client import JsonClient


@dataclass(frozen=True)
class Server:
    """Differences between kinds of servers.

    Attributes:
      load: makes the server load all weights from a Hugging Face folder; None where it cannot.
      adapter_routes: paths that load and unload an adapter.
      adapter_field: the field of a request that names an adapter.
      samples_at_once: whether one seeded request for n samples gives n different ones.
      stops_despite_ignore_eos: whether `ignore_eos` leaves `stop_token_ids` in force.
    """

    load: Callable[[JsonClient, Path], None] | None
    adapter_routes: tuple[str, str] | None = None
    adapter_field: str = "model"
    samples_at_once: bool = True
    stops_despite_ignore_eos: bool = True

    def load_adapter(self, client: JsonClient, name: str, folder: Path) -> None:
        """Loads a PEFT folder under a name."""
        assert self.adapter_routes is not None
        _checked(
            client,
            self.adapter_routes[0],
            client.post(self.adapter_routes[0], {"lora_name": name, "lora_path": str(folder)}),
        )

    def unload_adapter(self, client: JsonClient, name: str) -> None:
        """Unloads an adapter."""
        assert self.adapter_routes is not None
        _checked(client, self.adapter_routes[1], client.post(self.adapter_routes[1], {"lora_name": name}))


def _load_vllm(client: JsonClient, folder: Path) -> None:
    client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
    # Keys and values of prompts that the old weights made.
    client.post("/reset_prefix_cache", {})


def _load_sglang(client: JsonClient, folder: Path) -> None:
    path = "/update_weights_from_disk"
    _checked(client, path, client.post(path, {"model_path": str(folder), "flush_cache": True}))


def _checked(client: JsonClient, path: str, answer: Any) -> None:
    """An answer that says in its body that it failed (SGLang's have `success`) is an error too."""
    if isinstance(answer, Mapping) and answer.get("success") is False:
        reason = answer.get("message") or answer.get("error_message") or "no message"
        raise UserError(f"{client.url}{path}: the server did not load the weights: {reason}")


SERVERS: Mapping[str, Server] = {
    "vllm": Server(_load_vllm, ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")),
    # Its n samples of one request share a seed, and ignore_eos turns off all stop tokens.
    "sglang": Server(
        _load_sglang,
        ("/load_lora_adapter", "/unload_lora_adapter"),
        adapter_field="lora_path",
        samples_at_once=False,
        stops_despite_ignore_eos=False,
    ),
    "openai": Server(None),
}
