"""What the harness is asked: a tiny model's folder, requests, and tasks. Shared by the tests and `make goldens`.

The folder is written tensor by tensor from NumPy's generator, so that no change of jaxalign changes the model.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

LENGTH = 64  # tokens that the model reads at once
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
SPACE, LINE_END = 220, 198  # tokens
# Refuses system turns, as some models' templates do.
TEMPLATE = (
    "{% for turn in messages %}{% if turn['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "[{{ turn['role'] }}] {{ turn['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tokenizer(*, puts_bos: bool):
    """Bytes, `<s>` 256, `</s>` 257, `<pad>` 258; it may put `<s>` before every text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    if puts_bos:
        fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=TEMPLATE, **special)


def write_folder(folder: Path, *, puts_bos: bool = False) -> str:
    """A Hugging Face folder of a model whose next token depends much on those before it."""
    rng, width, inner = np.random.default_rng(5), CONFIG["hidden_size"], CONFIG["intermediate_size"]
    tensors = {"model.embed_tokens.weight": (259, width), "model.norm.weight": (width,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (16, width),
            "self_attn.k_proj": (8, width),
            "self_attn.v_proj": (8, width),
            "self_attn.o_proj": (width, 16),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    tensors["lm_head.weight"] = (259, width)
    made = {
        name: (1 + 0.1 * rng.standard_normal(shape))
        if len(shape) == 1
        else 2 * rng.standard_normal(shape) / np.sqrt(shape[1])
        for name, shape in tensors.items()
    }
    # Answers are of letters (tokens up to 93) and spaces for the most part, and end by themselves now and then.
    rare = np.setdiff1d(np.arange(94, 259), [SPACE, LINE_END, 257])
    made["lm_head.weight"][rare] *= 0.3
    made["lm_head.weight"][257] *= 1.3
    folder.mkdir(parents=True)
    save_file(
        {name: x.astype(np.float32) for name, x in made.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer(puts_bos=puts_bos).save_pretrained(folder)
    return str(folder)


def requests(arguments):
    """As the harness makes them."""
    return [SimpleNamespace(args=tuple(one), task_name="t") for one in arguments]


QUESTION = "Q: Is it so?\nA:"
LONG = "It is a long text, longer than the model can read at once, so that windows are needed: two, or three of them."
LIKELIHOOD = [
    # Choices behind one context: one token each, several, and of unequal length.
    *((QUESTION, choice) for choice in ("y", "n", "?")),
    *((QUESTION, choice) for choice in (" yes", " no", " it may well be so", " nobody knows")),
    # What greedy decoding gives, with and without a first token, and what it does not.
    *((QUESTION, continuation) for continuation in ("nnnN", "nnn", "nnnn", "b##E")),
    *(("a", continuation) for continuation in ("TTTT", "TTTTm</s>", "Tiiz", "T")),
    *(("A context of its own", continuation) for continuation in (".", ", and more")),
    ("Space at the end ", "is the continuation's"),
    ("two of them  ", "x"),
    ("line\n", "\nbreak"),
    ("", "no context"),
    ("", "x"),
    ("", "<s>begins with the first token"),
    ("<s>begins with it", " too"),
    ("Größe: ", "äöü 東京 🙂"),
    ("東京", "都"),
    (LONG, " The end."),
    (LONG, "."),
    (LONG, LONG[:60]),
    ("b", LONG[: LENGTH - 1]),  # as much as is read at once, without and with something left out
    ("It", LONG[: LENGTH - 1]),
    ("ab", LONG[:LENGTH]),
]
ROLLING = [
    ("",),
    ("x",),
    ("A short text.",),
    ("äöü 東京 🙂",),
    (" \n ",),
    ("<s>begins with the first token",),
    (LONG[: LENGTH - 1],),
    (LONG[:LENGTH],),
    (LONG[: LENGTH + 1],),
    (LONG,),
    (LONG * 2,),
]
GREEDY = {"until": ["\n", "#@"], "max_gen_toks": 12, "do_sample": False}
STARTS = (QUESTION, "Once", "a", "The", "x y z", "Größe", "1 2 3", "Hm?", "No", "ok.")
OVERLAPPING = ["8S", "b8", "P;P", "#P"]  # the first to be complete ends an answer, whichever is named first
GENERATION = [
    *((start, GREEDY) for start in STARTS),
    *((start, {"until": OVERLAPPING, "max_gen_toks": 16}) for start in STARTS),
    *(
        (start, {"until": [], "max_gen_toks": 40, "do_sample": False, "temperature": 0.0})
        for start in STARTS[:4]
    ),
    ("a", {"until": "\n", "max_new_tokens": 5, "num_beams": 1}),
    ("<s>Once", GREEDY),
    (LONG, GREEDY),
]
TURNS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🙂"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}],  # which is continued
]

CHOICES = [
    {"question": "Is it?", "choices": ["yes", "no", "perhaps it is"], "answer": 0},
    {"question": "Was it?", "choices": ["no", "yes"], "answer": 1},
    {"question": "Will it be?", "choices": ["who knows", "never", "a"], "answer": 2},
    {"question": "Größe?", "choices": ["äöü", "b", "東京"], "answer": 1},
    {"question": "And?", "choices": ["x", "y", "z"], "answer": 0},
]
ANSWERS = [{"question": start, "answer": "ttttm" if start == "a" else "n8P"} for start in STARTS]
TEXTS = [{"text": text} for text in ("A short text.", "äöü and so on", LONG)]
TASKS = {
    "own_choices": (
        CHOICES,
        """
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
fewshot_split: test
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    ),
    "own_answers": (
        ANSWERS,
        """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
fewshot_split: test
fewshot_config: {sampler: first_n}
generation_kwargs: {until: ["8"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match, ignore_case: true}, {metric: chrf}]
""",
    ),
    "own_texts": (
        TEXTS,
        """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    ),
}

WAYS = {
    "plain": {"tasks": list(TASKS)},
    "examples": {"tasks": ["own_choices"], "num_fewshot": 2},
    "chat": {
        "tasks": ["own_choices", "own_answers"],
        "apply_chat_template": True,
        "system_instruction": "Be brief.",
        "num_fewshot": 1,
    },
}


def write_tasks(folder: Path) -> str:
    """Tasks of the user's own: a YAML file and a JSONL file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, text) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test"
        (folder / f"{name}.yaml").write_text(f"{source}{text}")
    return str(folder)


def measured(results) -> dict[str, dict[str, float]]:
    """The metrics of `simple_evaluate`, without their errors."""
    return {
        task: {
            name: float(value)
            for name, value in found.items()
            if isinstance(value, float) and "stderr" not in name
        }
        for task, found in results["results"].items()
    }
