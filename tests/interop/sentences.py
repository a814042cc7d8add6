"""Sentence embeddings and 1-nearest-neighbour labels of a model folder according to `transformers`, on the CPU in f32.

    sentences.py MODEL_DIR ITEMS.jsonl REFERENCE.jsonl OUT.safetensors

The files hold `text` and `label`. OUT gets `items` and `reference`, embeddings [N, E]: the mean over all tokens of the last
hidden state, brackets included and padding not, of length 1; and `accuracy`, the share of items whose label is their
nearest neighbour's by the cosine.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import reference  # noqa: E402


@torch.no_grad()
def embed(model, tokenizer, texts):
    parts = []
    for start in range(0, len(texts), 32):
        batch = texts[start : start + 32]
        batch = tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")
        seen = batch["attention_mask"].unsqueeze(-1).float()
        states = model(**batch).last_hidden_state
        parts.append(F.normalize((states * seen).sum(1) / seen.sum(1), dim=-1))
    return torch.cat(parts)


def main():
    model_dir, items, others, out = sys.argv[1:]
    model = reference.load(model_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    files = [[json.loads(line) for line in Path(path).read_text().splitlines()] for path in (items, others)]
    ours, theirs = (embed(model, tokenizer, [record["text"] for record in file]) for file in files)
    nearest = (ours @ theirs.T).argmax(1).tolist()
    right = [item["label"] == files[1][place]["label"] for item, place in zip(files[0], nearest)]
    accuracy = torch.tensor([sum(right) / len(right)], dtype=torch.float64)
    save_file({"items": ours.contiguous(), "reference": theirs.contiguous(), "accuracy": accuracy}, out)


if __name__ == "__main__":
    main()
