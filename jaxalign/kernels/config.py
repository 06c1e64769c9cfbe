"""What kernels read of a model's configuration, and the names of their implementations."""

from typing import Any, Literal, NamedTuple, Protocol

AttentionImplementation = Literal["plain", "blockwise", "cudnn", "splash"]
MatmulImplementation = Literal["compute_dtype", "bfloat16_float32", "float32"]


class Choice(NamedTuple):
    """An implementation, and why it was chosen."""

    implementation: Any
    reason: str


class KernelConfig(Protocol):
    """Fields of `models.ModelConfig`, where they are explained."""

    @property
    def head_dim(self) -> int: ...
    @property
    def attention(self) -> Literal["auto"] | AttentionImplementation: ...
    @property
    def attention_softcap(self) -> float: ...
    @property
    def products(self) -> Literal["auto"] | MatmulImplementation: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def mesh(self) -> Any: ...
