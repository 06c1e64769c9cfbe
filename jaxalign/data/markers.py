"""Turn markers as a chat template, so that an export formats chats as its training did.

The template opens with a comment that names the markers. By it we know our own again, and write such chats as the run
that made the export did (see `chat_format`), whatever a template engine would make of it.
"""

import copy
import json
import re
from typing import Any, TypedDict

from jaxalign.data.records import Message

SAYS = "turn markers of jaxalign:"


class Markers(TypedDict):
    """What an exported template names, by the keys of the section `data`; the end token is `none` for none."""

    human: str
    assistant: str
    end_token: str


def marker_template(markers: Markers, start: str, end: str) -> str:
    """A Jinja template that writes turns as `ChatFormat` does with `template=markers`.

    Args:
      markers: the markers.
      start: text of the tokens that every row begins with.
      end: text of the tokens that follow each answer which does not end with them.
    """
    human, assistant, first, last = (
        json.dumps(text, ensure_ascii=False) for text in (markers["human"], markers["assistant"], start, end)
    )
    opened = f"{{{{- {first} }}}}\n" if start else ""
    closed = f"{{%- if not said.endswith({last}) -%}}\n{{{{- {last} }}}}\n{{%- endif -%}}\n" if end else ""
    return (
        f"{{#- {SAYS} {json.dumps(markers)} -#}}\n"
        f"{opened}"
        "{%- for message in messages -%}\n"
        "{%- set said = message['content'] | trim -%}\n"
        "{%- if message['role'] == 'assistant' -%}\n"
        f"{{{{- {assistant} + ' ' + said }}}}\n"
        f"{closed}"
        "{%- elif message['role'] == 'user' -%}\n"
        f"{{{{- {human} + ' ' + said }}}}\n"
        "{%- else -%}\n"
        "{{- said }}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        f"{{{{- {assistant} }}}}\n"
        "{%- endif -%}"
    )


def markers_of(tokenizer: Any) -> Markers | None:
    """The markers that a tokenizer was exported with; None where its chat template is none of ours."""
    match = re.match(rf"\{{#- {SAYS} (\{{.*\}}) -#\}}", str(getattr(tokenizer, "chat_template", None) or ""))
    try:
        return json.loads(match[1]) if match else None
    except ValueError:
        return None


def with_marker_template(chat: Any) -> tuple[Any, str]:
    """A copy of a format's tokenizer whose chat template writes what the format does.

    Args:
      chat: a `ChatFormat` of `template=markers`.

    Returns:
      The tokenizer, and why it is the format's own, unchanged, where no template gives the same ids; else empty.
    """
    tokenizer = chat.tokenizer
    end = tokenizer.decode(list(chat.end_ids)) if chat.end_ids else ""
    name = str(tokenizer.convert_ids_to_tokens(chat.end_ids[0])) if chat.end_ids else "none"
    markers: Markers = {"human": chat.human, "assistant": chat.assistant, "end_token": name}
    start = tokenizer.decode(list(chat.encoder.start)) if chat.encoder.start else ""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = marker_template(markers, start, end)
    if markers_of(changed) != markers:
        return tokenizer, "the markers cannot stand in a template"
    for turns, opens in PROBES:
        if rendered(changed, turns, opens) != written(chat, turns, opens):
            return (
                tokenizer,
                "the tokenizer takes the text of a whole chat apart in another way than its turns",
            )
    return changed, ""


# Chats by which a template is compared with the format: (messages, whether the next answer is asked for).
_USER, _ANSWER = {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": "It is 4."}
_MORE = {"role": "user", "content": "Why?\n\nSay it in *two* lines."}
PROBES = (
    ([_USER], True),
    ([_USER, _ANSWER], False),
    ([_USER, _ANSWER, _MORE], True),
    ([{"role": "system", "content": "Be brief.\n"}, _USER, _ANSWER, _MORE, _ANSWER], False),
)


def rendered(tokenizer: Any, messages: list[dict[str, str]], opens: bool) -> list[int]:
    """The ids that a tokenizer's chat template gives."""
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=opens, tokenize=True, return_dict=False)
    )


def written(chat: Any, messages: list[dict[str, str]], opens: bool) -> list[int]:
    """The ids that a `ChatFormat` gives: of a prompt, or of a chat that ends with an answer."""
    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages)
    if opens:
        return chat.prompt_ids(turns)
    return chat.encoder.rows(chat.conversation(turns).rows)[0].ids
