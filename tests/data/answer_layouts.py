"""One row of each published layout of demonstrations, labels, text and prompts, with its record or refusal."""

import json

from jaxalign.data.records import Comparison, Demonstration, Message, PromptRecord, Rating, Text
from tests.data.layout_parts import FUNCTION, HI, TOOLS, WEATHER, A, Layout, S, T, U

REPLIES = [
    {"message_id": "2", "text": "Go", "role": "assistant", "rank": 1, "replies": []},
    {"message_id": "3", "text": "Hello", "role": "assistant", "rank": 0}
    | {"replies": [{"message_id": "4", "text": "Thanks", "role": "prompter", "rank": None, "replies": []}]},
]
TREE = {
    "message_tree_id": "1",
    "tree_state": "ready_for_export",
    "prompt": {"message_id": "1", "text": "Hi", "role": "prompter", "lang": "en", "replies": REPLIES},
}

FLAT = {"message_tree_id": "1", "tree_state": "ready_for_export", "lang": "en", "deleted": False}
DEMONSTRATIONS = [
    Layout("OASST trees", "oasst_tree", TREE, Demonstration((U("Hi"), A("Hello")), None), unread=("tree_state",)),
    Layout(
        "OASST trees, for comparisons",
        "oasst_tree",
        TREE,
        Comparison((U("Hi"),), "Hello", "Go", 1.0),
        kind="comparison",
        unread=("tree_state",),
    ),
    Layout(
        "OASST messages, one a row",
        "oasst_tree",
        FLAT | {"message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter", "rank": None},
        Demonstration((U("Hi"), A("Hello")), None),
        unread=("tree_state",),
        more=(FLAT | {"message_id": "2", "parent_id": "1", "text": "Hello", "role": "assistant", "rank": 0},),
    ),
    Layout(
        "messages of trees that name no tree",
        "",
        {"message_id": "2", "parent_id": "1", "text": "Hello", "role": "assistant", "lang": "en", "rank": 0},
        "messages of a tree, one by one: expected message_tree_id in each, or the file of whole trees",
    ),
    Layout("KTO (TRL, text)", "kto", {"prompt": "P", "completion": "C", "label": True}, Rating("P", "C", None, True)),
    Layout(
        "KTO (TRL, conversational)",
        "kto",
        {"prompt": HI[:1], "completion": HI[1:], "label": False},
        Rating((U("Hi"),), "Hello", None, False),
    ),
    Layout("KTO, messages", "kto_chat", {"messages": HI, "label": False}, Rating((U("Hi"),), "Hello", None, False)),
    Layout(
        "KTO (LLaMA-Factory, Alpaca)",
        "kto_alpaca",
        {"instruction": "Do", "input": "", "output": "done", "kto_tag": False},
        Rating("Do", "done", None, False),
    ),
    Layout(
        "TruthfulQA labels",
        "truthfulqa_labels",
        {"question": "Q", "answer": "A", "truthful": False},
        Rating("Q", "A", None, False),
    ),
    Layout("messages (OpenAI, TRL)", "messages", {"messages": HI}, Demonstration((U("Hi"), A("Hello")), None)),
    Layout(
        "messages that repeat the prompt (UltraChat, No Robots)",
        "messages",
        {"prompt": "Hi", "prompt_id": "1", "messages": HI, "category": "Chat"},
        Demonstration((U("Hi"), A("Hello")), None),
        unread=("prompt_id", "category"),
    ),
    Layout(
        "messages with parts, developer, null",
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Rome"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
                ]},
                {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Sun"},
                {"role": "assistant", "content": "Sunny.", "reasoning_content": "The tool said sun.", "weight": 0},
            ],
            "tools": [FUNCTION],
        },
        Demonstration(
            (
                TOOLS,
                Message("developer", "Be kind."),
                U("Rome?"),
                A("", tool_calls=[{"id": "c1"} | WEATHER]),
                T("Sun", tool_call_id="c1", name="weather"),
                Message("assistant", "Sunny.", 0.0, {"reasoning_content": "The tool said sun."}),
            ),
            None,
        ),
    ),
    Layout(
        "ShareGPT",
        "conversations",
        {"id": "1", "system": "Be kind."}
        | {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Demonstration((S("Be kind."), U("Hi"), A("Hello")), None),
        unread=("id",),
    ),
    Layout(
        "ShareGPT function calls (LLaMA-Factory)",
        "conversations",
        {
            "conversations": [
                {"from": "human", "value": "Rome?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
                {"from": "observation", "value": "Sun"},
                {"from": "gpt", "value": "Sunny."},
            ],
            "tools": json.dumps([FUNCTION]),
        },
        Demonstration((TOOLS, U("Rome?"), A("", tool_calls=[WEATHER]), T("Sun"), A("Sunny.")), None),
    ),
    Layout(
        "Glaive function calling",
        "glaive",
        {
            "system": "SYSTEM: You may call: {}",
            "chat": "USER: Rome?\n\n\nASSISTANT: <functioncall> {\"name\": \"weather\", \"arguments\": "
            "'{\"city\": \"Rome\"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: Sun\n\n\n"
            "ASSISTANT: Sunny. <|endoftext|>\n\n\n",
        },
        Demonstration(
            (S("You may call: {}"), U("Rome?"), A("", tool_calls=[WEATHER]), T("Sun"), A("Sunny.")), None
        ),
    ),
    Layout(
        "WildChat, LMSYS-Chat",
        "conversation",
        {"conversation_hash": "h", "model": "m", "turn": 1, "language": "English", "toxic": False, "redacted": False}
        | {"conversation": [HI[0] | {"language": "English", "toxic": False}, HI[1] | {"language": "English"}]},
        Demonstration((U("Hi"), A("Hello")), None),
        unread=("conversation_hash", "model", "turn", "language", "toxic", "redacted", "conversation.language")
        + ("conversation.toxic",),
    ),
    Layout(
        "Capybara",
        "input_output_turns",
        {"source": "s", "conversation": [{"input": "Hi", "output": "Hello"}, {"input": "Name?", "output": "Ann"}]},
        Demonstration((U("Hi"), A("Hello"), U("Name?"), A("Ann")), None),
        unread=("source",),
    ),
    Layout(
        "NeMo-Aligner SFT",
        "conversations",
        {"mask": "User", "system": "Be kind.", "type": "VALUE_TO_TEXT"}
        | {"conversations": [{"from": "User", "value": "Hi", "label": None}]}
        | {"conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}]},
        Demonstration((S("Be kind."), U("Hi"), A("Hello")), None),
        unread=("type",),
    ),
    Layout(
        "NeMo-Aligner reward model",
        "",
        {"text": "User: When?\nAssistant: 31 August 2000"},
        "a dialogue marked as for NeMo-Aligner's reward models, whose chosen and rejected rows follow each other",
    ),
    Layout(
        "Alpaca",
        "alpaca",
        {"instruction": "Do", "input": "this", "output": "ok"},
        Demonstration("Do\n\nthis", "ok"),
    ),
    Layout(
        "Alpaca with system and history (LLaMA-Factory)",
        "alpaca",
        {"instruction": "Do", "input": "", "output": "ok", "system": "Be kind.", "history": [["Hi", "Hello"]]},
        Demonstration((S("Be kind."), U("Hi"), A("Hello"), U("Do"), A("ok")), None),
    ),
    Layout(
        "Dolly",
        "instruction_response",
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "closed_qa"},
        Demonstration("Who?\n\nAnn came.", "Ann"),
        unread=("category",),
    ),
    Layout(
        "self-instruct seed tasks",
        "self_instruct",
        {"id": "s", "name": "n", "instruction": "Do", "instances": [{"input": "x", "output": "y"}]},
        Demonstration("Do\n\nx", "y"),
        unread=("id", "name"),
    ),
    Layout(
        "OpenOrca",
        "openorca",
        {"id": "1", "system_prompt": "Be kind.", "question": "Q", "response": "R"},
        Demonstration((S("Be kind."), U("Q")), "R"),
        unread=("id",),
    ),
    Layout(
        "SQuAD",
        "squad",
        {"id": "1", "title": "T", "context": "Ann came.", "question": "Who?"}
        | {"answers": {"text": ["Ann"], "answer_start": [0]}},
        Demonstration("Ann came.\n\nWho?", "Ann"),
        unread=("id", "title"),
    ),
    Layout(
        "MedQA",
        "multiple_choice",
        {"question": "Which?", "answer": "Gout", "options": {"A": "Flu", "B": "Gout"}, "answer_idx": "B"},
        Demonstration("Which?\n\nA. Flu\nB. Gout", "Gout"),
    ),
    Layout(
        "MMLU",
        "multiple_choice",
        {"question": "Which?", "subject": "s", "choices": ["Flu", "Gout"], "answer": 1},
        Demonstration("Which?\n\nA. Flu\nB. Gout", "Gout"),
        unread=("subject",),
    ),
    Layout(
        "ARC, CommonsenseQA",
        "multiple_choice",
        {"id": "1", "question": "Which?", "choices": {"text": ["Flu", "Gout"], "label": ["A", "B"]}, "answerKey": "B"},
        Demonstration("Which?\n\nA. Flu\nB. Gout", "Gout"),
        unread=("id",),
    ),
    Layout(
        "openai_summarize_tldr",
        "tldr",
        {"prompt": "POST: Long.\n\nTL;DR:", "label": " Short."},
        Demonstration("POST: Long.\n\nTL;DR:", "Short."),
    ),
    Layout("prompt, completion", "prompt_completion", {"prompt": "P", "completion": "C"}, Demonstration("P", "C")),
    Layout(
        "prompt, completion (TRL, conversational)",
        "prompt_completion",
        {
            "prompt": [*HI, {"role": "user", "content": "Name?"}],
            "completion": [{"role": "assistant", "content": "Ann"}],
        },
        Demonstration((U("Hi"), Message("assistant", "Hello", 0.0), U("Name?"), A("Ann")), None),
    ),
    Layout("prompt, response", "prompt_response", {"prompt": "P", "response": "C"}, Demonstration("P", "C")),
    Layout("question, answer (GSM8K)", "question_answer", {"question": "Q", "answer": "A"}, Demonstration("Q", "A")),
    Layout(
        "query, response (MetaMathQA)",
        "query_response",
        {"query": "Q", "response": "R", "type": "t", "original_question": "O"},
        Demonstration("Q", "R"),
        unread=("type", "original_question"),
    ),
    Layout(
        "problem, solution (MATH, NuminaMath)",
        "problem_solution",
        {"problem": "P", "solution": "S", "source": "s"},
        Demonstration("P", "S"),
        unread=("source",),
    ),
    Layout("text to continue", "text", {"text": "Once."}, Text("Once.")),
    Layout(
        "text that is an answer to nothing",
        "completion",
        {"text": "Once."},
        Demonstration("", "Once."),
        columns={"completion": "text"},
    ),
    Layout(
        "text with a label (sentiment)",
        "",
        {"text": "fine .", "label": "pos"},
        "the format text would leave unread 'label' (a label or a score)",
    ),
    Layout("prompts", "prompt", {"prompt": "P", "answer": "4"}, PromptRecord("P"), unread=("answer",)),
    Layout("prompts as turns", "prompt", {"prompt": HI[:1]}, PromptRecord((U("Hi"),))),
    Layout(
        "PubMedQA",
        "question_answer",
        {"pmid": "1", "question": "Why?", "contexts": ["One.", "Two."], "long_answer": "So.", "final_decision": "yes"},
        Demonstration("One.\n\nTwo.\n\nWhy?", "So."),
        columns={"answer": "long_answer"},
        unread=("pmid", "final_decision"),
    ),
    Layout(
        "MT-bench questions",
        "prompt",
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        PromptRecord("Write."),
        columns={"prompt": "turns.0"},
        unread=("question_id", "category", "turns.1"),
    ),
    Layout(
        "TruthfulQA, the table",
        "question_answer",
        {"Type": "t", "Question": "Q", "Best Answer": "A", "Incorrect Answers": "x; y"},
        Demonstration("Q", "A"),
        columns={"question": "Question", "answer": "Best Answer"},
        unread=("Type", "Incorrect Answers"),
    ),
    Layout(
        "MedMCQA",
        "",
        {"question": "Which?", "exp": None, "cop": 1, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "id": "1"},
        "no known format has the fields",
    ),
    Layout(
        "images beside a chat (LLaVA)",
        "",
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
        | {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]},
        "the format conversations would leave unread 'image' (a part of the prompt)",
    ),
    Layout(
        "image parts (OpenAI)",
        "",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, HI[1]]},
        "unsupported part of type 'image_url': only text is read",
    ),
]  # fmt: skip
