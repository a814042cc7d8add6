"""What `apply_chat_template` makes of conversations, tokens and assistant masks included.

    chats.py CASES.json OUT.json

CASES holds `now` (an ISO time), `folders` and `conversations`. OUT gets, for each folder, conversation and value of `add_generation_prompt`, either
`refused` or `text`, `ids` and `mask`. With `pieces`, a list of templates, it gets a list of what each makes of the first conversation. With
`texts`, it gets the ids of each as a prompt, in a list for each folder.
"""

import datetime
import json
import sys
from pathlib import Path

import transformers
from transformers.utils import chat_template_utils


def frozen(now):
    """A datetime class whose clock stands still."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(now)

    return Frozen


def apply(tokenizer, conversation, add_generation_prompt):
    """The text, its tokens and the mask, or what was raised."""
    shared = dict(
        conversation=conversation["messages"],
        tools=conversation.get("tools"),
        documents=conversation.get("documents"),
        add_generation_prompt=add_generation_prompt,
        **conversation.get("chat_template_kwargs", {}),
    )
    try:
        text = tokenizer.apply_chat_template(tokenize=False, **shared)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    encoded = tokenizer.apply_chat_template(return_dict=True, return_assistant_tokens_mask=True, **shared)
    return {"text": text, "ids": encoded["input_ids"], "mask": encoded["assistant_masks"]}


def piece(tokenizer, template, conversation):
    """The text alone, or what was raised."""
    variables = conversation["chat_template_kwargs"]
    try:
        return {"text": tokenizer.apply_chat_template(conversation["messages"], chat_template=template, tokenize=False, **variables)}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def main():
    cases_path, out_path = sys.argv[1:]
    cases = json.loads(Path(cases_path).read_text())
    chat_template_utils.datetime = frozen(cases["now"])
    if "pieces" in cases:
        tokenizer = transformers.AutoTokenizer.from_pretrained(cases["folders"][0], local_files_only=True)
        [conversation] = cases["conversations"].values()
        out = [piece(tokenizer, template, conversation) for template in cases["pieces"]]
        Path(out_path).write_text(json.dumps(out))
        return
    if "texts" in cases:
        tokenizers = [transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in cases["folders"]]
        out = [[tokenizer(text).input_ids for text in cases["texts"]] for tokenizer in tokenizers]
        Path(out_path).write_text(json.dumps(out))
        return
    out = {}
    for folder in cases["folders"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for name, conversation in cases["conversations"].items():
            for add_generation_prompt in (False, True):
                key = f"{folder}\t{name}\t{add_generation_prompt}"
                out[key] = apply(tokenizer, conversation, add_generation_prompt)
    Path(out_path).write_text(json.dumps(out))


if __name__ == "__main__":
    main()
