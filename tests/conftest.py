"""What every test shares: the CPU with 8 virtual devices, a compilation cache, checked annotations."""

import gc
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CACHE = tempfile.TemporaryDirectory(prefix="jaxalign-tests-")

# Without compiled files each of the suite's processes spends four seconds on parsing jax, transformers and datasets.
# pip leaves them out, and so does Python under PYTHONDONTWRITEBYTECODE, which some set to keep a tree clean.
sys.dont_write_bytecode, sys.pycache_prefix = False, str(ROOT / ".cache" / "python")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# All of this must stand before anything imports jax; child processes inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most of the suite's time is compiling. XLA's and LLVM's expensive passes are left out (it takes 40% off); they run in
# `make test-all`, in the demo and for every user.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    # A program in 32 parts, which LLVM compiles side by side, costs half as much CPU again as one in one part; both
    # cores have a worker of their own to serve.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if version("jaxlib") < "0.11":  # where the flag is known: its emitters take half as long again to compile
        flags.append("--xla_cpu_use_fusion_emitters=false")
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join(
        [given, *(flag for flag in flags if flag.partition("=")[0] not in given)]
    ).strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tokenized files of tests are kept for the session alone, and never in the home folder.
os.environ["JAXALIGN_CACHE"] = _CACHE.name
os.environ["HF_DATASETS_CACHE"] = str(Path(_CACHE.name) / "datasets")

from jaxtyping import install_import_hook

# Shapes and dtypes of annotations are checked in the tests, never in a user's run.
install_import_hook("jaxalign.losses", "beartype.beartype")

import jax
import pytest

from jaxalign import llmdoctor
from jaxalign.runs import plots

STRICT_PROMOTION = ("losses", "models", "test_logprobs.py", "test_masking.py")


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Losses, log-probs and models may not lean on implicit dtype promotion."""
    part = request.path.relative_to(ROOT / "tests").parts[0]
    if part not in STRICT_PROMOTION:
        yield
        return
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs(request):
    """Thousands of small programs of the loss tests would stay in memory, and slow down all that follows."""
    yield
    if "losses" in request.path.parts:
        jax.clear_caches()


CURVE, PICTURES = plots.curve, {}


def drawn_once(series, title, **options):
    """Drawing took half the time of a short PPO run: a picture of each title and lines is drawn, its like copied."""
    lines = tuple((label, len(line), len(line[0]) < 3) for label, line in series.items())
    key = (title, lines, *sorted(options.items()))
    if key not in PICTURES:
        PICTURES[key] = CURVE(series, title, **options)
    return PICTURES[key]


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Runs of the trainers draw what no run of this worker has drawn; the tests of `runs` draw everything."""
    if "runs" not in request.path.parts[-2:]:
        monkeypatch.setattr(plots, "curve", drawn_once)


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.fixture
def compiled():
    """One item for each program that is compiled from now on (or read from the cache of compiled programs)."""
    COMPILED.clear()
    return COMPILED


@pytest.fixture(scope="session")
def live_bytes():
    """Counts the bytes of all arrays that live; two arrays on one buffer count once.

    With `collected`, what only waits to be freed (as memory that NumPy lent to a CPU) is gone before.
    """

    def count(*, collected=False):
        if collected:
            gc.collect()
        shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
        held = {(s.device, s.data.unsafe_buffer_pointer()): s.data.nbytes for s in shards if s.data.size}
        return sum(held.values())

    return count


@pytest.fixture(scope="session")
def devices():
    """The 8 virtual CPU devices."""
    found = jax.devices("cpu")
    assert len(found) == 8
    return found


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer of bytes, made here: 256 bytes, `<s>` 256, `</s>` 257, `<pad>` 258; no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def tiny_model_folder(byte_tokenizer, tmp_path_factory):
    """A Hugging Face folder with a random 2-layer Llama of width 16 and the tokenizer of bytes."""
    from jaxalign import models

    config = models.ModelConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=64,
        bos_id=256,
        eos_ids=(257,),
        pad_id=258,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    models.save_pretrained(models.create(config, key=jax.random.key(0)), folder, tokenizer=byte_tokenizer)
    return folder


@pytest.fixture
def make_doctor(tiny_model_folder, byte_tokenizer, tmp_path):
    """Makes the run folder of a doctor of the tiny model: `make_doctor(name, seed=1, adapter=False, **card)`."""
    from jaxalign import models

    def made(name, *, seed=1, adapter=False, tokenizer=byte_tokenizer, **card):
        run = tmp_path / name
        base = models.load_pretrained(tiny_model_folder)
        model = models.create(base.config, key=jax.random.key(seed))
        # Random matrices of the usual size say nearly the same of every token.
        model = models.merge(models.split(model)[0], jax.tree.map(lambda x: 4 * x, model.params))
        card = {"patient": str(tiny_model_folder), "dimension": name, "beta": 1.0} | card
        if adapter:
            lora = models.LoraConfig(enabled=True, rank=2)
            leaves = models.create_adapter(base.config, lora, key=jax.random.key(seed))
            leaves = jax.tree.map(
                lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed), x.shape), leaves
            )
            models.save_adapter(leaves, run / "adapter", lora, base.config)
            model = models.merge_adapter(base, models.attach(leaves, lora))
            card = {"adapter": "../adapter", "base": str(tiny_model_folder)} | card
        models.save_pretrained(model, run / "export", tokenizer=tokenizer)
        head = llmdoctor.create_value_head(
            model.config, models.HeadConfig(), key=jax.random.key(seed), ramp=0.0, horizon=1.0
        )
        llmdoctor.save_doctor(run / "export", llmdoctor.DoctorCard(**card), head)
        return run

    return made
