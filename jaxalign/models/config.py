"""The configuration of a decoder of any family."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxalign.errors import ModelError
from jaxalign.kernels.config import AttentionImplementation, MatmulImplementation
from jaxalign.kernels.remat import Remat, remat_level

# Whose cosines a layer turns queries and keys by: those of full attention, of sliding windows, or none.
Rotation = Literal["global", "local", "none"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length; see `models.rotary`.

    Attributes:
      kind: `none`, `linear` (positions / factor), `llama3` (by wavelength), `yarn` (by turns within the trained
        length), `longrope` (factors of each frequency) or `dynamic` (a larger base).
      factor: stretch.
      original_positions: the trained length.
      low_frequency_factor, high_frequency_factor: llama3's bounds.
      attention_factor: of yarn and longrope, what turned queries and keys are multiplied by; None: what the kind's
        formula makes of `factor`.
      beta_fast, beta_slow, truncate: yarn's bounds, in turns within the trained length, and whether they are rounded
        to whole frequencies.
      mscale, mscale_all_dim: of yarn's formula for `attention_factor`; both or none.
      short_factor, long_factor: longrope's stretch of each frequency, for rows up to the trained length and beyond.
    """

    kind: Literal["none", "linear", "llama3", "yarn", "longrope", "dynamic"] = "none"
    factor: float = 1.0
    original_positions: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def by_length(self) -> bool:
        """Whether frequencies depend on the longest row."""
        return self.kind in ("longrope", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Of a feed-forward block of experts (`models.mixture`).

    Attributes:
      experts: how many a layer has; 0 for one plain MLP.
      per_token: how many a token uses.
      normalized: whether the weights of those sum to 1.
      balance: factor of the load-balancing loss in training.
      biased: whether the router and the experts have biases (gpt-oss).
      limit: bound of what the experts' nonlinearity reads (gpt-oss), which is then
        min(gate, limit) * sigmoid(alpha * min(gate, limit)) * (1 + clip(up, -limit, limit)); 0 for the model's own.
      alpha: its steepness.
      dense_size: intermediate_size in its folder, where no layer has an MLP of that width.
    """

    experts: int = 0
    per_token: int = 0
    normalized: bool = True
    balance: float = 0.0
    biased: bool = False
    limit: float = 0.0
    alpha: float = 1.0
    dense_size: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder, configured. Hashable: it is the static part of a model.

    Attributes:
      family: name of its family in `models.families`, in whose format it is saved.
      vocab_size: V, rows of the embedding.
      hidden_size: D.
      intermediate_size: width of the MLP, or of an expert.
      mixture: experts in place of one MLP.
      num_layers: L.
      num_heads: query heads N.
      num_kv_heads: key/value heads; divides num_heads.
      head_dim: H, size of a head.
      max_positions: longest row that it will read, in tokens; see `rotary.with_context`.
      folder_positions: longest row by its folder (`max_position_embeddings`) where that is not max_positions; else 0.
      norm: `rms` or `layer`.
      norm_eps: added to the variance.
      norm_offset: the norm multiplies by weight + offset (Gemma: 1).
      activation: `silu`, `gelu` (exact) or `gelu_tanh`.
      gated_mlp: gate * up before down; else up alone.
      positions: `rope` or `learned`.
      rope_theta: base of the rotary frequencies (global layers).
      rope_scaling: stretching of them (global layers).
      rope_theta_local: base in sliding-window layers; None takes rope_theta.
      rotary_dim: leading dimensions of a head that rotate.
      rotary_interleaved: neighbouring dimensions turn together (GLM), not those of two halves.
      sliding_window: number of keys that a sliding layer attends to, including its own; 0 for none.
      sliding_layers: per layer, whether it uses the sliding window; empty means all if sliding_window > 0.
      rotary_layers: per layer, whether queries and keys rotate (SmolLM3); empty means all.
      qk_norm: norm on queries and keys before rotation.
      qk_norm_over: what it is over: each head, or the whole projection (OLMo 2).
      qkv_bias, out_bias, mlp_bias: whether those projections have biases.
      head_bias: whether the vocabulary projection has one.
      parallel_residual: attention and MLP both read the layer's input (GPT-NeoX).
      pre_norms: norms on the inputs of attention and MLP (OLMo 2 has none).
      post_norms: norms on the outputs of attention and MLP (Gemma 2, 3).
      attention_sinks: a learned score for each head that takes a share of the attention to nothing (gpt-oss).
      attention_softcap, final_softcap: c * tanh(x / c) on scores and logits; 0 for none.
      query_scale: factor on queries; 0 takes 1 / sqrt(head_dim).
      embedding_scale: factor on embeddings (Gemma: sqrt(D)).
      tied_head: the embedding is the vocabulary projection too.
      bos_id, eos_ids, pad_id: special tokens; -1 or () if there is none. Each of eos_ids ends a completion.
      generation: the other fields of a folder's generation_config.json, as JSON; used only for export.
      param_dtype, compute_dtype: names of dtypes.
      remat: activations of a layer stored for the backward pass; the rest are recomputed (see `kernels.remat`).
      attention: implementation for whole rows, see `models.attention`; auto picks a fast one for the backend.
      products: implementation of matrix products, see `kernels.matmul`; auto likewise.
      exact: whether a token's numbers are the same bits however tokens are batched (see `models.exact`).
      mesh: the devices that custom attention calls are split over (`jax.sharding.Mesh`); None for one device.
    """

    family: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    mixture: Mixture = Mixture()
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    folder_positions: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated_mlp: bool = True
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    rope_theta_local: float | None = None
    rotary_dim: int = 0
    rotary_interleaved: bool = False
    sliding_window: int = 0
    sliding_layers: tuple[bool, ...] = ()
    rotary_layers: tuple[bool, ...] = ()
    qk_norm: bool = False
    qk_norm_over: Literal["head", "projection"] = "head"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    parallel_residual: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    attention_sinks: bool = False
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    query_scale: float = 0.0
    embedding_scale: float = 1.0
    tied_head: bool = True
    bos_id: int = -1
    eos_ids: tuple[int, ...] = ()
    pad_id: int = -1
    generation: str = ""
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: Remat = "none"
    attention: Literal["auto"] | AttentionImplementation = "auto"
    products: Literal["auto"] | MatmulImplementation = "auto"
    exact: bool = False
    mesh: Any = None

    def __post_init__(self) -> None:
        remat_level(self.remat)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} is not divisible by num_kv_heads = {self.num_kv_heads}"
            )
        for name in ("sliding_layers", "rotary_layers"):
            if (count := len(getattr(self, name))) not in (0, self.num_layers):
                raise ValueError(f"{name} has {count} entries for {self.num_layers} layers")
        if self.mixture.experts and not 1 <= self.mixture.per_token <= self.mixture.experts:
            raise ValueError(
                f"a token uses {self.mixture.per_token} of {self.mixture.experts} experts; expected 1 or more of them"
            )
        if self.mixture.experts and self.exact:
            raise ModelError(f"exact mode cannot compute experts ({self.family})")
        for name in ("short_factor", "long_factor"):
            count, expected = len(getattr(self.rope_scaling, name)), self.rotary_size // 2
            if self.rope_scaling.kind == "longrope" and count != expected:
                raise ValueError(f"{name} has {count} entries, but {expected} frequencies turn a head")
        for name, known in (("attention", AttentionImplementation), ("products", MatmulImplementation)):
            known = ("auto", *get_args(known))
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def rotary_size(self) -> int:
        """Dimensions of a head that rotate."""
        return self.rotary_dim or self.head_dim

    @property
    def layer_rotations(self) -> tuple[Rotation, ...]:
        """Per layer, whose tables of cosines it turns by."""
        own = self.rope_theta_local is not None
        rotates = self.rotary_layers or (True,) * self.num_layers
        return tuple(
            ("local" if own and slides else "global") if rotates[layer] else "none"
            for layer, slides in enumerate(self.layer_slides)
        )

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """Those of `layer_rotations`, each once, in an order that is the same in every process."""
        return tuple(sorted(set(self.layer_rotations)))

    @property
    def layer_slides(self) -> tuple[bool, ...]:
        """Per layer, whether it attends only to the sliding window."""
        if not self.sliding_window:
            return (False,) * self.num_layers
        return self.sliding_layers or (True,) * self.num_layers
