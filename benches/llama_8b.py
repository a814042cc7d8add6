"""Wall time and peak memory of `minitron prune` on a checkpoint shaped like Llama-3.1-8B (bf16, 16 GB in transformers' shards),
to the shape of Llama-3.1-Minitron-4B-Width (9 GB), beside `cp` of as many bytes, in alternating runs on one machine.

    python3 benches/llama_8b.py --work DIR --random --rounds 3

Both sides find what they read in the page cache (16 GB for prune, 9 GB for cp), or with --cache cold none of it: left to chance,
cp would copy what was written just before while prune reads from the disk.

DIR needs 16 GB for the source and twice 9 GB for the outputs; without --random the source is sparse: reading it costs little, so
the times say little. With it, every byte comes from one pseudo-random block, whose prime length makes every row different, and
rows of the student are compared with the rows and columns of the source that plan.json says were kept. Removes what it wrote,
unless --keep is given.
"""

import argparse
import array
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 4096, 14336, 32, 8, 128, 32, 128256
STUDENT_HIDDEN, STUDENT_MLP, STUDENT_PARAMS = 3072, 9216, 4_512_746_496
MAX_SHARD_BYTES = 5_000_000_000
BLOCK_LEN = 67_108_859

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MLP,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "vocab_size": VOCAB, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}


def tensors():
    """Name, shape, and which kept units index each side (None: all stay), in the order transformers writes them."""
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN], [None, "hidden"]
    for layer in range(LAYERS):
        at, mlp = f"model.layers.{layer}", f"mlp.{layer}"
        yield f"{at}.self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN], [None, "hidden"]
        yield f"{at}.self_attn.k_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN], [None, "hidden"]
        yield f"{at}.self_attn.v_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN], [None, "hidden"]
        yield f"{at}.self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM], ["hidden", None]
        yield f"{at}.mlp.gate_proj.weight", [MLP, HIDDEN], [mlp, "hidden"]
        yield f"{at}.mlp.up_proj.weight", [MLP, HIDDEN], [mlp, "hidden"]
        yield f"{at}.mlp.down_proj.weight", [HIDDEN, MLP], ["hidden", mlp]
        yield f"{at}.input_layernorm.weight", [HIDDEN], ["hidden"]
        yield f"{at}.post_attention_layernorm.weight", [HIDDEN], ["hidden"]
    yield "model.norm.weight", [HIDDEN], ["hidden"]
    yield "lm_head.weight", [VOCAB, HIDDEN], [None, "hidden"]


def product(shape):
    n = 1
    for side in shape:
        n *= side
    return n


def header(entries):
    """A safetensors header of (name, dtype, shape, bytes per element)."""
    table, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, width in entries:
        end = offset + width * product(shape)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offset


def write_source(folder, fill):
    folder.mkdir(parents=True, exist_ok=True)
    shards, room = [[]], MAX_SHARD_BYTES
    for name, shape, _ in tensors():
        n_bytes = 2 * product(shape)
        if n_bytes > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append((name, "BF16", shape, 2))
        room -= n_bytes
    # No byte has bit 6, so that no exponent is full: weights are finite.
    finite = bytes(x & 0xbf for x in range(256))
    block = memoryview(random.Random(8).randbytes(BLOCK_LEN).translate(finite)) if fill else None
    weight_map, total = {}, 0
    for number, entries in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        head, n_bytes = header(entries)
        with open(folder / file, "wb") as out:
            out.write(head)
            if block is None:
                out.truncate(len(head) + n_bytes)
            else:
                for start in range(0, n_bytes, BLOCK_LEN):
                    out.write(block[:min(BLOCK_LEN, n_bytes - start)])
        weight_map.update({name: file for name, *_ in entries})
        total += n_bytes
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))


def write_scores(path):
    draw = random.Random(31)
    sizes = {"activation/hidden": HIDDEN}
    for layer in range(LAYERS):
        sizes |= {f"activation/mlp.{layer}": MLP, f"activation/heads.{layer}": HEADS}
    scores = {name: array.array("f", (draw.random() for _ in range(size))) for name, size in sizes.items()}
    with open(path, "wb") as out:
        out.write(header([(name, "F32", [len(values)], 4) for name, values in scores.items()])[0])
        for values in scores.values():
            out.write(values.tobytes())
    return scores


class Folder:
    """Rows of a folder's tensors."""

    def __init__(self, path):
        self.entries = {}
        for file in sorted(path.glob("*.safetensors")):
            with open(file, "rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                table = json.loads(opened.read(length))
            table.pop("__metadata__", None)
            for name, entry in table.items():
                self.entries[name] = (file, entry["shape"], 8 + length + entry["data_offsets"][0])

    def n_params(self):
        return sum(product(shape) for _, shape, _ in self.entries.values())

    def row(self, name, idx):
        """A row of a matrix, as numbers; of a vector, all of it."""
        file, shape, start = self.entries[name]
        with open(file, "rb") as opened:
            opened.seek(start + 2 * idx * shape[1] if len(shape) > 1 else start)
            return array.array("H", opened.read(2 * shape[-1]))


def check(source_dir, student_dir, scores, fill):
    """Counts, the units that plan.json keeps, and rows of every tensor. Returns how many rows were compared."""
    source, student = Folder(source_dir), Folder(student_dir)
    assert student.n_params() == STUDENT_PARAMS, f"{student.n_params()} parameters, expected {STUDENT_PARAMS}"
    kept = json.loads((student_dir / "plan.json").read_text())["kept"]
    for name, n_kept in [("hidden", STUDENT_HIDDEN)] + [(f"mlp.{layer}", STUDENT_MLP) for layer in range(LAYERS)]:
        values = scores[f"activation/{name}"]
        best = sorted(range(len(values)), key=lambda unit: (-values[unit], unit))[:n_kept]
        assert kept[name] == sorted(best), f"plan.json does not keep the best of {name}"
    if not fill:
        return 0
    draw, n_rows = random.Random(5), 0
    for name, shape, sides in tensors():
        units = [kept[side] if side else range(length) for side, length in zip(sides, shape)]
        rows = [0, len(units[0]) - 1] + [draw.randrange(len(units[0])) for _ in range(6)] if len(shape) > 1 else [0]
        for idx in rows:
            whole = source.row(name, units[0][idx])
            wanted = array.array("H", (whole[column] for column in units[-1]))
            assert student.row(name, idx) == wanted, f"{name}, row {idx}"
            n_rows += 1
    return n_rows


def timed(command):
    """Seconds of a command, and its peak resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def settle(inputs, cache):
    """Nothing of an earlier run is left to be written, and what is to be read lies in memory (warm) or on disk (cold)."""
    os.sync()
    if cache == "cold":
        Path("/proc/sys/vm/drop_caches").write_text("3")
    for file in sorted(inputs.glob("*.safetensors")) if cache == "warm" else []:
        with open(file, "rb") as opened:
            while opened.read(1 << 24):
                pass
    time.sleep(2)


def rounds(a, source, student, copy):
    prune = [a.minitron, "prune", source, "--scores", a.work / "scores.safetensors", "--hidden", STUDENT_HIDDEN,
             "--mlp", STUDENT_MLP, "--out", student, "--quiet", *a.prune_args]
    seconds, peaks = {"prune": [], "cp": [], "cp_and_sync": []}, []
    timed([*prune, "--force"])  # There must be something to copy; not counted.
    for number in range(a.rounds):
        for side in ["prune", "cp"] if number % 2 == 0 else ["cp", "prune"]:
            if side == "prune":
                shutil.rmtree(student)
                settle(source, a.cache)
                elapsed, peak = timed(prune)
                peaks.append(peak)
            else:
                settle(student, a.cache)
                start = time.perf_counter()
                elapsed, _ = timed(["cp", "-r", student, copy])
                timed(["sync", "-f", copy])
                seconds["cp_and_sync"].append(time.perf_counter() - start)
                shutil.rmtree(copy)
            seconds[side].append(elapsed)
            print(f"round {number} {side}: {elapsed:.1f} s", file=sys.stderr, flush=True)
    return seconds, peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where source, student and copy go")
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--random", action="store_true", help="fill the source; sparse otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", choices=["warm", "cold"], default="warm",
                        help="what both sides read lies in the page cache, or not (needs root)")
    parser.add_argument("--keep", action="store_true", help="leave the source for another run, and use one that is there")
    parser.add_argument("--prune-args", nargs=argparse.REMAINDER, default=[], help="more flags of prune, last on the line")
    a = parser.parse_args()
    source, student, copy = (a.work / name for name in ("source", "student", "copy"))
    if not (source / "config.json").exists():
        write_source(source, a.random)
    scores = write_scores(a.work / "scores.safetensors")
    seconds, peaks = rounds(a, source, student, copy)
    n_rows = check(source, student, scores, a.random)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    print(json.dumps({
        "source": "random" if a.random else "sparse",
        "cache": a.cache,
        "output_bytes": sum(file.stat().st_size for file in student.iterdir()),
        "seconds": {side: round(value, 2) for side, value in median.items()},
        "spread": {side: [round(min(values), 2), round(max(values), 2)] for side, values in seconds.items()},
        "ratio_to_cp": round(median["prune"] / median["cp"], 2),
        "ratio_to_cp_and_sync": round(median["prune"] / median["cp_and_sync"], 2),
        "peak_mib": round(max(peaks)),
        "n_params": STUDENT_PARAMS,
        "rows_compared": n_rows,
        "rounds": a.rounds,
        "cores": os.cpu_count(),
    }, indent=1))
    for folder in [student, copy, *([] if a.keep else [source])]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
