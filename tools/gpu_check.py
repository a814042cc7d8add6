"""The steps of tools/gpu_check.sh, which sets the variables that this reads. The standard library alone."""

import json
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

WORK, OUT = Path(os.environ["GPU_CHECK_WORK"]), Path(os.environ["GPU_CHECK_OUT"])
DEVICE, MINITRON = os.environ["GPU_CHECK_DEVICE"], os.environ["GPU_CHECK_MINITRON"]
PYTHON, SECONDS = os.environ["GPU_CHECK_PYTHON"], float(os.environ["GPU_CHECK_SECONDS"])
BEGIN = time.monotonic()
ON_GPU = DEVICE == "cuda"
# Hidden width, MLP, layers, heads, key/value heads, vocabulary; windows of a batch, tokens of a window, steps.
SHAPE = (1536, 4096, 12, 24, 8, 128256) if ON_GPU else (64, 160, 3, 4, 2, 512)
SMALL = (256, 704, 4, 8, 4, 4096) if ON_GPU else (64, 160, 2, 4, 2, 512)
BATCH, WIDTH, STEPS = (8, 1024, 12) if ON_GPU else (2, 32, 8)


class NotReached(Exception):
    """The time is up."""


def left():
    return SECONDS - (time.monotonic() - BEGIN)


def gpu_mib(pid):
    """What a process takes of the GPU; None where nobody says."""
    words = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    text = subprocess.run(words, capture_output=True, text=True).stdout
    rows = [line.split(", ") for line in text.splitlines() if line.count(", ") == 1]
    own = [int(mib) for found, mib in rows if found == str(pid) and mib.isdigit()]
    # In a container, pids are the host's; a card of one's own has one process.
    every = [int(mib) for _, mib in rows if mib.isdigit()]
    return max(own or every, default=None)


def host_mib(pid):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else None


def run(words, most=None):
    """Output, what it said on the way, and its peak of memory in MiB."""
    most = min(most or left(), left())
    if most <= 1:
        raise NotReached
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0]

    def watch():
        while process.poll() is None:
            peak[0] = max(peak[0], (gpu_mib if ON_GPU else host_mib)(process.pid) or 0)
            time.sleep(0.2 if ON_GPU else 0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        out, said = process.communicate(timeout=most)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise NotReached from None
    watcher.join()
    if process.returncode != 0:
        lines = said.strip().splitlines()
        raise RuntimeError(f"{words[1] if len(words) > 1 else words[0]}: {lines[-1] if lines else process.returncode}")
    return out, said, peak[0]


def minitron(*words, device=DEVICE, dtype=None):
    typed = [MINITRON, *words, "--device", device, "--json"] + (["--dtype", dtype] if dtype else [])
    out, said, peak = run(typed)
    return json.loads(out), said, peak


def write_config(path, shape):
    hidden, mlp, layers, heads, kv_heads, vocab = shape
    path.write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "vocab_size": vocab, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
        "initializer_range": 0.02, "dtype": "float32", "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    }))


def write_tokens(path, n):
    """Tokens that are learned soon: few of the vocabulary, each from the one before, but for one in eight."""
    draw, token, tokens = random.Random(1), 1, []
    for _ in range(n):
        token = draw.randrange(1, 17) if draw.randrange(8) == 0 else token % 16 + 1
        tokens.append(token)
    header = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({n},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
                     + struct.pack(f"<{n}I", *tokens))


def tensors(path):
    """The f32 tensors of a safetensors file by name."""
    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    found = {}
    for name, about in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            found[name] = struct.unpack(f"<{(end - begin) // 4}f", raw[8 + n + begin:8 + n + end])
    return found


def make(name, shape, n_steps):
    """A model that has learned a little, and the text that it has learned from."""
    config, tokens, folder = WORK / f"{name}.json", WORK / f"{name}.npy", WORK / name
    write_config(config, shape)
    write_tokens(tokens, max(BATCH * WIDTH * STEPS, 1 << 14))
    data = ["--data", tokens, "--seq-len", WIDTH, "--batch-size", BATCH]
    steps = ["--tokens", n_steps * BATCH * WIDTH, "--lr", "1e-3"]
    minitron("train", "--config", config, *data, *steps, "--out", folder, dtype="f32")
    return folder, data


def parity(rows):
    folder, data = make("small", SMALL, 60)
    text = [*data[:4], "--batch-size", 4]
    loss = {}
    for device, dtype in [("cpu", "f32"), (DEVICE, "f32"), (DEVICE, "bf16")]:
        loss[device, dtype] = minitron("eval", folder, *text, device=device, dtype=dtype)[0]["loss"]
    expected = loss["cpu", "f32"]
    for dtype, most in [("f32", 1e-4), ("bf16", 2e-2)]:
        error = abs(loss[DEVICE, dtype] - expected) / expected
        rows.append((f"eval in {dtype}: loss beside the CPU's", f"{loss[DEVICE, dtype]:.6f}", f"{expected:.6f}", error <= most))
    scores = {}
    for device in ["cpu", DEVICE]:
        place = WORK / f"scores-{device}.safetensors"
        minitron("score", folder, *text, "--samples", 8, "--out", place, "--force", device=device, dtype="f32")
        scores[device] = tensors(place)
    error = max(max(abs(a - b) for a, b in zip(one, scores[DEVICE][name])) / max(map(abs, one), default=0 or 1)
                for name, one in scores["cpu"].items() if any(one))
    rows.append(("score in f32: largest difference from the CPU's", f"{error:.1e}", "1e-3", error <= 1e-3))
    steps = [*data, "--tokens", 3 * BATCH * WIDTH, "--lr", "1e-3"]
    pruned = WORK / "small-pruned"
    minitron("prune", folder, "--scores", WORK / f"scores-{DEVICE}.safetensors", "--ratio", 0.6, "--out", pruned)
    found = {}
    for device in ["cpu", DEVICE]:
        out = WORK / f"small-distilled-{device}"
        minitron("distill", "--teacher", folder, "--student", pruned, *steps, "--out", out, "--force", device=device, dtype="f32")
        lines = (out / "metrics.jsonl").read_text().splitlines()
        found[device] = [json.loads(line)["loss"] for line in lines]
    error = max(abs(a - b) / abs(a) for a, b in zip(found["cpu"], found[DEVICE]))
    rows.append(("distill in f32, 3 steps: largest difference of a loss", f"{error:.1e}", "1e-3", error <= 1e-3))


def said_mib(report, said):
    """What a step was said to take: on a GPU, beside what the process takes of the host."""
    if not ON_GPU:
        return report["memory"]["predicted_bytes"] / 2**20
    found = re.search(r"memory: about .*?\(student (\S+), teacher (\S+), activations (\S+), logits (\S+)\)", said)
    units = {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 1024}
    parts = [re.fullmatch(r"([\d.]+)(\w+)", part.strip(",")) for part in found.groups()] if found else []
    return 1.1 * sum(float(part[1]) * units[part[2]] for part in parts) if parts and all(parts) else None


def speed(rows):
    folder, data = make("large", SHAPE, 40 if not ON_GPU else 4)
    report, _, peak = minitron("score", folder, *data, "--samples", 2 * BATCH, "--out", WORK / "large.safetensors")
    rows.append(("score: tokens/s, peak MiB", f"{report['tokens_per_second']:.0f}", f"{peak:.0f}", None))
    pruned = WORK / "large-pruned"
    report, _, _ = minitron("prune", folder, "--scores", WORK / "large.safetensors", "--ratio", 0.5, "--out", pruned)
    share = report["n_params"] / report["n_params_source"]
    rows.append(("prune to a half: share of the parameters kept", f"{share:.3f}", "0.500", abs(share - 0.5) <= 0.05))
    steps = [*data, "--tokens", STEPS * BATCH * WIDTH, "--lr", "3e-4", "--checkpoint-every", 10**9]
    for label, dtype, more in [("bf16", "bf16", []), ("bf16, layers run again", "bf16", ["--recompute"]), ("f32", "f32", [])]:
        words = ["distill", "--teacher", folder, "--student", pruned, *steps, *more, "--out", WORK / "distilled", "--force"]
        try:
            report, said, peak = minitron(*words, dtype=dtype)
        except RuntimeError as error:
            rows.append((f"distill in {label}", str(error)[:80], "", False))
            continue
        losses = [json.loads(line)["loss"] for line in (WORK / "distilled/metrics.jsonl").read_text().splitlines()]
        rows.append((f"distill in {label}: tokens/s", f"{report['tokens_per_second']:.0f}", "", None))
        rows.append((f"distill in {label}: last loss beside the first", f"{losses[-1]:.4f}", f"{losses[0]:.4f}", losses[-1] < losses[0]))
        expected = said_mib(report, said)
        # A GPU's peak has the kernels in it, and what the allocator keeps.
        beside = f"{expected:.0f}" if expected else "not said"
        rows.append((f"distill in {label}: MiB taken beside MiB said", f"{peak:.0f}", beside, None))
    return folder, pruned, data[1]


def peers(rows, folder, pruned, tokens):
    for label, words in [("transformers", []), ("transformers and Liger", ["--liger"])]:
        command = [PYTHON, "benches/gpu_peer.py", folder, pruned, tokens, BATCH, WIDTH, STEPS, DEVICE, *words]
        try:
            out, _, peak = run(command)
        except RuntimeError as error:
            rows.append((f"{label}: tokens/s", "absent: " + str(error)[-60:], "", None))
            continue
        found = json.loads(out.strip().splitlines()[-1])
        rows.append((f"{label}, {found['dtype']}: tokens/s, peak MiB", f"{found['tokens_per_second']:.0f}", f"{peak:.0f}", None))


def machine():
    if not ON_GPU:
        return "a trial on the CPU: nothing here was measured on a GPU"
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip().splitlines()[0]


def main():
    rows, place = [], []
    for name, step in [("parity", parity), ("speed", lambda rows: place.append(speed(rows))),
                       ("peers", lambda rows: peers(rows, *place[0]))]:
        try:
            if name == "peers" and not place:
                raise NotReached
            step(rows)
        except NotReached:
            rows.append((f"{name}: not reached in {SECONDS:.0f} s", "", "", None))
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            rows.append((f"{name}: {str(error)[:120]}", "", "", False))
    verdict = {True: "holds", False: "**does not hold**", None: ""}
    lines = [f"{machine()}; {time.monotonic() - BEGIN:.0f} s", "", "| check | found | beside | |", "|---|---:|---:|---|"]
    lines += [f"| {what} | {found} | {beside} | {verdict[holds]} |" for what, found, beside, holds in rows]
    OUT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(1 if any(holds is False for *_, holds in rows) else 0)


main()
