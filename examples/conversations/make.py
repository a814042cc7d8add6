"""Conversations from questions and prose, and a model folder with a chat template to learn them with.

    python3 examples/conversations/make.py DATA OUT

DATA holds `eval/` (gsm8k, piqa, arc_easy, openbookqa), `text/classics/` and `models/prose-llama`. OUT gets `train.jsonl`,
`held_out.jsonl` (one conversation in ten) and `model/`, a copy of prose-llama with a template. Needs Python alone; the same
files give the same bytes.
"""
import json
import random
import shutil
import sys
from pathlib import Path

# One line a turn: who speaks, what, and a mark at its end.
TEMPLATE = """{%- for message in messages -%}
    {{- '[' + message.role + '] ' + message.content | trim + ' [end]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '[assistant] ' -}}
{%- endif -%}
"""
# Words of a passage; what follows it is the answer.
PASSAGE = (25, 70)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def questions(data):
    """Pairs of a question and its right answer."""
    pairs = [(q["question"], q["answer"].split("####")[0]) for q in lines(data / "eval/gsm8k_test.jsonl")]
    for name in ("piqa_val", "arc_easy_test", "openbookqa_test"):
        pairs += [(q["context"], q["choices"][q["gold"]]) for q in lines(data / f"eval/{name}.jsonl")]
    return pairs


def passages(data, rng):
    """Pairs of neighbouring paragraphs: the second goes on where the first ends."""
    pairs = []
    for book in sorted((data / "text/classics").glob("*.txt")):
        paragraphs = [" ".join(p.split()) for p in book.read_text(encoding="utf-8").split("\n\n")]
        fits = [PASSAGE[0] <= len(p.split()) <= PASSAGE[1] for p in paragraphs]
        both = [i for i in range(len(paragraphs) - 1) if fits[i] and fits[i + 1]]
        pairs += [("Go on: " + paragraphs[i], paragraphs[i + 1]) for i in rng.sample(both, min(500, len(both)))]
    return pairs


def conversations(pairs):
    """Two turns each."""
    for first, second in zip(pairs[::2], pairs[1::2]):
        turns = [("user", first[0]), ("assistant", first[1]), ("user", second[0]), ("assistant", second[1])]
        yield {"messages": [{"role": role, "content": content.strip()} for role, content in turns]}


def main(data, out):
    rng = random.Random(17)
    pairs = questions(data) + passages(data, rng)
    rng.shuffle(pairs)
    out.mkdir(parents=True, exist_ok=True)
    records = [json.dumps(record, ensure_ascii=False) + "\n" for record in conversations(pairs)]
    parts = {"held_out": records[::10], "train": [r for i, r in enumerate(records) if i % 10]}
    for name, part in parts.items():
        (out / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    shutil.copytree(data / "models/prose-llama", out / "model", dirs_exist_ok=True)
    (out / "model").chmod(0o755)
    (out / "model/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    print(f"{len(parts['train'])} conversations to learn from, {len(parts['held_out'])} held out, in {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
