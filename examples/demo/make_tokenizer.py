#!/usr/bin/env python3
"""Makes tokenizer.json beside this script: a byte-level BPE of 512 entries for the demo's stories.

    make_tokenizer.py STORIES.jsonl     one object a line, with a field `text`
    make_tokenizer.py STORIES.txt       one story a line

Needs the Python package `tokenizers` and nothing of minitron.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

N_VOCAB = 512
END = "<|end|>"


def stories(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)["text"] if path.endswith(".jsonl") else line.rstrip("\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The end token comes first, so it is id 0; all 256 bytes follow, so any text can be encoded.
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories(sys.argv[1]), trainer)
    n_tokens = tokenizer.get_vocab_size()
    if n_tokens != N_VOCAB or tokenizer.token_to_id(END) != 0:
        sys.exit(f"expected {N_VOCAB} entries with `{END}` first, got {n_tokens}; give it more text")
    tokenizer.save(str(Path(__file__).with_name("tokenizer.json")))


if __name__ == "__main__":
    main()
