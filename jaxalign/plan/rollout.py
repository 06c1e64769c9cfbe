"""The programs of a rollout for shapes alone: reading prompts, and decoding them by a cache that has grown full."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign import models
from jaxalign.errors import ConfigError
from jaxalign.kernels.frozen import Frozen
from jaxalign.kernels.quantize import keys_of
from jaxalign.mesh import ROLLOUT_RULES, replicated, row_shards
from jaxalign.models.adapted import Adapted
from jaxalign.models.kv_cache import KVCache
from jaxalign.models.lora import targets_of
from jaxalign.plan.program import compiled, held
from jaxalign.plan.shapes import everywhere, key_on, placed, with_shardings
from jaxalign.plan.targets import Target
from jaxalign.rollout import Sampler, continuous_batching, decode, sharding
from jaxalign.rollout.decode import RowSampling
from jaxalign.rollout.sampling import SamplerFeatures
from jaxalign.training.core.scoring import CausalPolicy

# As a trainer's `Generator` makes its `Sampler`.
_ARGUMENTS = inspect.signature(Sampler).parameters
MAX_ROWS, BLOCK = (_ARGUMENTS[name].default for name in ("max_rows", "block"))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What the programs of a rollout take, with shapes on the mesh in place of arrays.

    Attributes:
      mesh: the devices.
      definition: static part of the model that samples.
      params, adapter: its leaves; the adapter is None where it is merged into them.
      copies: leaves of `params` that are the sampler's own, and not the trainer's.
      completions: in all.
      num_samples: completions a prompt.
      prompt: tokens of a prompt.
      new_tokens: longest completion.
      slots: rows that are decoded at once, of all devices.
      first, most: columns of the cache when it is made, and at most.
      prompts: those that the first program reads: tokens, lengths, and how their completions are drawn.
      features: what sampling provides for.
      stops: the ids that end a completion.
      int8_cache: whether keys and values are 8-bit integers.
    """

    mesh: Mesh
    definition: Any
    params: Any
    adapter: Any
    copies: list[Any]
    completions: int
    num_samples: int
    prompt: int
    new_tokens: int
    slots: int
    first: int
    most: int
    prompts: tuple[Any, Any, RowSampling]
    features: SamplerFeatures
    stops: Any
    int8_cache: bool

    @property
    def refills(self) -> bool:
        """Whether more completions wait than there are slots, so that prompts are read while others are decoded."""
        return self.completions > self.slots

    @property
    def rounds(self) -> int:
        """How often the slots are filled."""
        return -(-self.completions // self.slots)

    def reading(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of `decode.read_prompts`."""
        given = (self.definition, self.params, self.adapter, *self.prompts, self.stops, key_on(self.mesh))
        return given, {
            "copies": self.num_samples,
            "features": self.features,
            "int8_cache": self.int8_cache,
        }

    def weights(self) -> Any:
        """What `decode.decode_weights` gives."""
        made = jax.eval_shape(
            lambda params, adapter: decode.decode_weights(self.definition, params, adapter),
            self.params,
            self.adapter,
        )
        return with_shardings(made, sharding.weight_shardings(made, self.mesh))

    def read(self) -> int:
        """Bytes of weights that a device reads for a token: of embeddings that are not the head too, just rows."""
        weights = self.weights()
        unread = {} if self.definition.config.tied_head else weights["embed"]
        return held(weights) - held(unread)

    def prompt_cache(self) -> KVCache:
        """Keys and values of the prompts that `decode.read_prompts` gives."""
        (_, *shapes), options = self.reading()
        made = jax.eval_shape(
            lambda *arrays: decode.read_prompts(self.definition, *arrays, **options)[0], *shapes
        )
        return self._placed(made)

    def cache(self, columns: int) -> KVCache:
        """Keys and values of all slots."""
        mesh = sharding.mesh_of(self.definition.config)
        options = {} if mesh is None else {"mesh": mesh}
        made = jax.eval_shape(
            lambda prompts, source, column: decode.new_cache(
                prompts, source, column, length=columns, **options
            ),
            self.prompt_cache(),
            self._rows(self.slots, jnp.int32),
            self._scalar(),
        )
        return self._placed(made)

    def decoding(self, columns: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of `decode.decode_block` by a cache of so many columns; None is the most."""
        rows = self.slots
        given = (
            self.definition,
            self.weights(),
            self.cache(self.most if columns is None else columns),
            self._rows(rows, jnp.int32),
            self._rows(rows, jnp.bool_),
            self._rows(rows, jnp.int32),
            self._scalar(),
            self._scalar(),
            _draws(rows, self.mesh),
            self.stops,
            key_on(self.mesh),
        )
        return given, {"features": self.features, "block": BLOCK}

    def _rows(self, count: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return _of_rows((count,), dtype, self.mesh)

    def _scalar(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.mesh))

    def _placed(self, cache: KVCache) -> KVCache:
        keys, values = (
            with_shardings(part, sharding.cache_shardings(part, self.mesh))
            for part in (cache.keys, cache.values)
        )
        starts = self._rows(cache.starts.shape[0], jnp.int32)
        return KVCache(keys=keys, values=values, starts=starts, column=self._scalar())  # type: ignore[arg-type]


def rollout_of(
    config: Any, policy: CausalPolicy, trained: Any, frozen: Any, mesh: Mesh, tokens: int
) -> Rollout:
    """The rollout of an on-policy command, all of whose prompts are as long as a row allows.

    Args:
      config: the command's, an `OnPolicyConfig`.
      policy: how its leaves make a model.
      trained, frozen: shapes of the policy's leaves on the mesh.
      mesh: the devices.
      tokens: of a row, prompt and completion.

    Raises:
      ConfigError: rows without room for a prompt, or beyond the model's context.
    """
    sampling, shape = config.sampling, policy.definition.config
    new, prompt = sampling.max_new_tokens, tokens - sampling.max_new_tokens
    if prompt < 1:
        raise ConfigError(
            f"tokens={tokens}: sampling.max_new_tokens={new} leaves no room for a prompt; set tokens to {new + 1} "
            "or more"
        )
    if tokens > shape.max_positions:
        raise ConfigError(f"tokens={tokens}: the model's context is {shape.max_positions}")
    definition, params, adapter, copies = _sampler(config, policy, trained, frozen, mesh)
    groups, samples = row_shards(mesh, ROLLOUT_RULES), sampling.num_samples
    completions = config.train.prompts * samples
    slots = continuous_batching.slots_of(completions, samples, MAX_ROWS, groups)
    width = continuous_batching.width_of(prompt, shape.max_positions)
    rows = continuous_batching.prompts_read(config.train.prompts, samples, slots, width, groups)
    stops = shape.eos_ids if sampling.stop_tokens is None else sampling.stop_tokens
    kept = continuous_batching.power_of_two(len(stops))
    return Rollout(
        mesh=mesh,
        definition=definition,
        params=params,
        adapter=adapter,
        copies=copies,
        completions=completions,
        num_samples=samples,
        prompt=prompt,
        new_tokens=new,
        slots=slots,
        first=continuous_batching.width_of(width + min(BLOCK, new - 1)),
        most=continuous_batching.most_columns(prompt, new, BLOCK, shape.max_positions),
        prompts=(
            _of_rows((rows, width), jnp.int32, mesh),
            _of_rows((rows,), jnp.int32, mesh),
            _draws(rows * samples, mesh),
        ),
        features=SamplerFeatures(
            sampled=sampling.temperature > 0,
            greedy=sampling.temperature == 0,
            top_k=sampling.top_k > 0,
            top_p=sampling.top_p < 1,
            min_p=sampling.min_p > 0,
        ),
        stops=jax.ShapeDtypeStruct((kept,), jnp.int32, sharding=replicated(mesh)),
        int8_cache=config.rollout.cache == "int8",
    )


def _sampler(
    config: Any, policy: CausalPolicy, trained: Any, frozen: Any, mesh: Mesh
) -> tuple[Any, Any, Any, list[Any]]:
    """What a `Sampler` holds: definition, parameters and adapter; and which parameters no one else holds."""
    int8, merge = config.rollout.weights == "int8", config.rollout.engine.weights == "merged"
    kept = []

    def parts(trained: Any, frozen: Any) -> Any:
        model, adapter = policy.parts(trained, frozen)
        if adapter is not None and merge:
            model, adapter = models.merge_adapter(model, adapter), None
        definition, params = models.split(model)
        kept.append(definition)
        if int8:
            params, adapter = decode.int8_params(definition, params, adapter), None
        return params, adapter

    params, adapter = jax.eval_shape(parts, trained, frozen)
    params = placed(params, mesh)
    adapter = everywhere(adapter, mesh)
    base = trained if policy.lora is None else frozen
    changed = targets_of(policy.definition.config, policy.lora) if policy.lora and (merge or int8) else ()
    return kept[0], params, adapter, list(_own(params, base, changed))


def _own(params: Any, base: Any, changed: tuple[str, ...]) -> Iterator[Any]:
    """The leaves of `params` that are not those of `base`: other ones, and sums with an adapter of the names given."""

    def leaves(tree: Any) -> list[tuple[Any, Any]]:
        return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, Frozen))[0]

    before = {jax.tree_util.keystr(path): leaf for path, leaf in leaves(base)}
    for path, leaf in leaves(params):
        if isinstance(leaf, Adapted):
            continue  # the sum is made where it is read
        old = before.get(jax.tree_util.keystr(path))
        same = old is not None and type(leaf) is type(old) and leaf.dtype == old.dtype
        if not same or keys_of(path)[-1] in changed:
            yield leaf


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a rollout takes of one device beside what the trainer holds, in bytes.

    Attributes:
      rollout: its shapes.
      own: parameters that the sampler keeps for itself, also while the policy is updated.
      weights: the weights as decoding reads them, where they are not the parameters.
      read: what a token reads of weights.
      cache: keys and values of all slots, when the cache is largest.
      stages: of each part of a rollout the bytes that it takes in all; the first is where old parameters are
        replaced.
      prompts, token: the collectives of reading prompts, and of decoding a token.
      seconds: time to compile.
    """

    rollout: Rollout
    own: int
    weights: int
    read: int
    cache: int
    stages: dict[str, int]
    prompts: list[Any]
    token: list[Any]
    seconds: float

    @property
    def most(self) -> int:
        """Bytes at most, `own` included."""
        return max(self.stages.values())


def sampled(rollout: Rollout, target: Target) -> Sampled:
    """Compiles the programs of a rollout; call it within `jaxalign.target.compiling_for`.

    Raises:
      DoesNotFit: the compiler refuses one.
    """
    reading, options = rollout.reading()
    read = compiled(lambda: decode.read_prompts.lower(*reading, **options), reading[1:], target)
    given = (rollout.params, rollout.adapter)
    cast = compiled(lambda: decode.decode_weights.lower(rollout.definition, *given), given, target)
    arguments, options = rollout.decoding()
    block = compiled(lambda: decode.decode_block.lower(*arguments, **options), arguments[1:], target)
    weights = arguments[1]
    there = {
        jax.tree_util.keystr(path): _like(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(rollout.params)[0]
    }
    copied = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]
        if there.get(jax.tree_util.keystr(path)) != _like(leaf)
    ]
    own, laid_out, cache = held(rollout.copies), held(copied), _stored(arguments[2])
    first = _stored(rollout.cache(rollout.first))
    prompts, waiting = _stored(rollout.prompt_cache()), laid_out + cache if rollout.refills else 0
    stages = {
        "taking the new weights": 2 * own,
        "reading prompts": own + waiting + read.more,
        "placing prompts": own + prompts + (waiting or first),
        "laying out the weights": own + first + laid_out + cast.temporaries,
        "decoding": own + laid_out + cache + block.more,
    }
    if rollout.most > rollout.first:
        stages["growing the cache"] = own + laid_out + cache + _stored(rollout.cache(_before(rollout)))
    return Sampled(
        rollout=rollout,
        own=own,
        weights=laid_out,
        read=rollout.read(),
        cache=cache,
        stages=stages,
        prompts=read.collectives,
        token=[one for one in block.collectives if one.in_loop],
        seconds=sum(program.seconds for program in (read, cast, block)),
    )


def _before(rollout: Rollout) -> int:
    """Columns of the cache before it grew to the most."""
    shorter = [
        n for n in range(rollout.first, rollout.most) if continuous_batching.width_of(n) < rollout.most
    ]
    return continuous_batching.width_of(max(shorter))


def _stored(cache: KVCache) -> int:
    return held((cache.keys, cache.values))


def _like(leaf: Any) -> tuple[Any, Any]:
    return leaf.sharding.shard_shape(leaf.shape), leaf.dtype


# --- shapes -----------------------------------------------------------------------------------


def _of_rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    spec = PartitionSpec() if mesh.size == 1 else sharding.ROWS
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _draws(rows: int, mesh: Mesh) -> RowSampling:
    whole, real = _of_rows((rows,), jnp.int32, mesh), _of_rows((rows,), jnp.float32, mesh)
    return RowSampling(ids=whole, temperature=real, top_k=whole, top_p=real, min_p=real)
