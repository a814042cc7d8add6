"""What reconstructing large models takes: memory as `minitron prune --max-memory` says it, and operations, counted.

    .deps/venv/bin/python benches/reconstruction_cost.py --work DIR

Sparse checkpoints of three shapes, halved, on 16,384 tokens in batches of 4 windows of 512; nothing is computed. Operations of N tokens, P parameters in layers of which a share p stays, E channels of which K stay, C inputs of the widest writer:

    passes      2·N·P for the teacher, three times (twice for its norms); 2·N·p·P for the student, twice
    squares     2·N·(K² + E·K) for readers of a part, 2·N·(C² + K·C) for its writer, each with those held out
    solving     6 · (C³/3 + 2·C²·K) at a writer, as many at readers: five ridges at most, and the last fit (f64)
    turning     2·E·P, and four times 2·V·E² for a table of V rows (f64)
    logits      of n = 4,096 tokens: 2·n·(P + p·P) to them, and twice 2·n·V·(E + K)
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import llama_8b

ROOT = Path(__file__).resolve().parent.parent
#          hidden, MLP, heads, kv heads, head size, layers, student's hidden, MLP
SHAPES = {
    "1b-128k": (2048, 8192, 32, 8, 64, 16, 1024, 4096),
    "8B": (4096, 14336, 32, 8, 128, 32, 3072, 9216),
    "70B": (8192, 28672, 64, 8, 128, 80, 6144, 18432),
}
VOCAB, SAMPLES, SEQ_LEN, BATCH = 128256, 32, 512, 4
COMPARED = 4096


def make(folder, shape):
    names = ["HIDDEN", "MLP", "HEADS", "KV_HEADS", "HEAD_DIM", "LAYERS"]
    for name, value in zip(names, shape):
        setattr(llama_8b, name, value)
    keys = ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers"]
    llama_8b.CONFIG |= dict(zip(keys, shape))
    llama_8b.write_source(folder / "model", False)
    llama_8b.write_scores(folder / "scores.safetensors")
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, VOCAB, SAMPLES * SEQ_LEN))


def said(a, folder, shape):
    """MiB that are asked for where too little is given."""
    words = [a.minitron, "prune", folder / "model", "--scores", folder / "scores.safetensors", "--hidden", shape[6], "--mlp", shape[7],
             "--data", folder / "tokens.npy", "--samples", SAMPLES, "--seq-len", SEQ_LEN, "--batch-size", BATCH,
             "--max-memory", "600MiB", "--out", folder / "student", "--quiet"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    found = re.search(r"reconstructing this model needs (\d+)MiB", done.stderr)
    if not found:
        sys.exit(done.stderr)
    return int(found[1])


def operations(shape):
    hidden, mlp, heads, kv_heads, head_dim, layers, kept, kept_mlp = shape
    n, width = SAMPLES * SEQ_LEN, heads * head_dim
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    params = layers * (attention + 3 * hidden * mlp)
    student = layers * (kept / hidden) * (attention + 3 * hidden * kept_mlp)
    squares = layers * 2 * n * sum(c * c + kept * c for c in [width, kept_mlp]) + layers * 2 * 2 * n * (kept * kept + hidden * kept)
    solving = layers * 6 * sum(c**3 / 3 + 2 * c * c * r for c, r in [(width, kept), (kept_mlp, kept), (kept, hidden), (kept, hidden)])
    turning = 2 * hidden * params + 8 * VOCAB * hidden * hidden
    logits = 2 * COMPARED * (params + student + 2 * VOCAB * (hidden + kept))
    return {"f32": 2 * n * (3 * params + 2 * student) + squares + logits, "f64": solving + turning}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    print("| shape | memory, said | operations in f32 | in f64 |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        folder = a.work / name
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, shape)
        limit, count = said(a, folder, shape), operations(shape)
        print(f"| {name} | {limit:,} MiB | {count['f32'] / 1e12:,.0f} T | {count['f64'] / 1e12:,.0f} T |", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
