"""Wall time and peak memory of `minitron prune` on a checkpoint shaped like Qwen3-30B-A3B (bf16), from 128 experts to 96,
beside `cp` of as many bytes, in alternating runs on one machine.

    python3 benches/moe_30b.py --work DIR --layers 8 --rounds 3

The source is sparse, so that it takes no room: reading it costs little, and writing is what both sides do. `cp` copies the last
student. All 48 layers write 46 GB, and need twice that beside each other; with fewer the tensors are the same, only less often.
Removes what it wrote, unless --keep is given.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, WIDTH, EXPERTS, KEPT, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 768, 128, 96, 32, 4, 128, 151936
MAX_SHARD_BYTES = 5_000_000_000


def config(n_layers):
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN, "intermediate_size": 6144,
        "num_hidden_layers": n_layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "num_experts": EXPERTS, "num_experts_per_tok": 8, "moe_intermediate_size": WIDTH, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }


def tensors(n_layers):
    """Name and shape, in the order in which transformers writes them."""
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        yield f"{at}.self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN]
        yield f"{at}.self_attn.k_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield f"{at}.self_attn.v_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield f"{at}.self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM]
        yield f"{at}.self_attn.q_norm.weight", [HEAD_DIM]
        yield f"{at}.self_attn.k_norm.weight", [HEAD_DIM]
        yield f"{at}.mlp.gate.weight", [EXPERTS, HIDDEN]
        for expert in range(EXPERTS):
            yield f"{at}.mlp.experts.{expert}.gate_proj.weight", [WIDTH, HIDDEN]
            yield f"{at}.mlp.experts.{expert}.up_proj.weight", [WIDTH, HIDDEN]
            yield f"{at}.mlp.experts.{expert}.down_proj.weight", [HIDDEN, WIDTH]
        yield f"{at}.input_layernorm.weight", [HIDDEN]
        yield f"{at}.post_attention_layernorm.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def n_bytes(shape):
    size = 2
    for side in shape:
        size *= side
    return size


def write_source(folder, n_layers):
    """Shards of zeros that take no room, with their index."""
    shards, weight_map, total = [[]], {}, 0
    for name, shape in tensors(n_layers):
        if sum(n_bytes(s) for _, s in shards[-1]) + n_bytes(shape) > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, shape))
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes(shape)]}
            at += n_bytes(shape)
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(n_layers)))
    return total


def timed(command):
    """Seconds, and MiB at most, of a process."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minitron", default=str(ROOT / "target/release/minitron"))
    parser.add_argument("--dry-run", action="store_true", help="plan and check alone, which all 48 layers have room for")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    source, student, copy = (args.work / name for name in ("source", "student", "copy"))
    source.mkdir(parents=True)
    print(f"source: {write_source(source, args.layers) / 1e9:.1f} GB")
    # Every fourth expert goes.
    kept = [expert for expert in range(EXPERTS) if expert % 4 != 3]
    plan = args.work / "plan.json"
    plan.write_text(json.dumps({"kept": {f"experts.{layer}": kept for layer in range(args.layers)}}))
    prune = [args.minitron, "prune", str(source), "--plan", str(plan), "--max-memory", "1GiB", "--quiet", "--reconstruct", "none"]
    if args.dry_run:
        seconds, peak = timed([*prune, "--dry-run"])
        print(f"dry run: {seconds:.1f} s, {peak:.0f} MiB")
    rows = []
    for _ in range(0 if args.dry_run else args.rounds):
        for old in (student, copy):
            shutil.rmtree(old, ignore_errors=True)
        ours = timed([*prune, "--out", str(student)])
        os.sync()
        theirs = timed(["cp", "-r", "--sparse=never", "--reflink=never", str(student), str(copy)])
        os.sync()
        rows.append((ours[0], theirs[0], ours[1]))
        print(f"prune {ours[0]:.1f} s, {ours[1]:.0f} MiB; cp {theirs[0]:.1f} s; {ours[0] / theirs[0]:.2f}", flush=True)
    if rows:
        written = sum(path.stat().st_size for path in student.iterdir())
        ratio = statistics.median(ours / theirs for ours, theirs, _ in rows)
        print(f"student: {written / 1e9:.1f} GB; median ratio {ratio:.2f}; at most {max(peak for *_, peak in rows):.0f} MiB")
    if not args.keep:
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
