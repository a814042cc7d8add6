"""Loss on a text, and KL to a teacher, of models whose logits are multiplied by a factor: how much of a loss is confidence.

    .deps/venv/bin/python benches/logit_scale.py TEACHER STUDENT [STUDENT ...] --data wiki.valid.tokens

The first 64 windows of 256 tokens, as `minitron eval --samples 64 --seq-len 256` takes them; at a factor of 1 its numbers are those. The
KL is from the teacher as it is.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FACTORS = [0.98, 0.99, 1.0, 1.01, 1.02, 1.03]


def logits_of(path, windows):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.cat([model(batch).logits[:, :-1] for batch in windows.split(8)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=256)
    a = parser.parse_args()
    n_tokens = a.samples * a.seq_len
    ids = AutoTokenizer.from_pretrained(a.teacher)(a.data.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    if len(ids) < n_tokens:
        raise SystemExit(f"{a.data}: {len(ids)} tokens, expected {n_tokens} or more")
    windows = torch.tensor(ids[:n_tokens]).view(a.samples, a.seq_len)
    labels = windows[:, 1:].flatten()
    teacher = logits_of(a.teacher, windows)
    wanted = teacher.log_softmax(-1)
    print(f"| | {' | '.join(f'× {factor}' for factor in FACTORS)} |\n|---|{'---|' * len(FACTORS)}")
    for path in [a.teacher, *a.students]:
        logits = teacher if path == a.teacher else logits_of(path, windows)
        cells = []
        for factor in FACTORS:
            found = (logits * factor).log_softmax(-1)
            loss = torch.nn.functional.nll_loss(found.flatten(0, 1), labels).item()
            kl = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
            cells.append(f"{loss:.4f}, {kl:.4f}")
        print(f"| {path.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
