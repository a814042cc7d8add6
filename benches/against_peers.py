"""Tokens per second and peak memory of `minitron score` and `minitron distill` beside what people run today (transformers
with hooks, plain KL distillation in eager PyTorch), in alternating runs on one machine.

    .deps/venv/bin/python benches/against_peers.py --peers ../shared/peers --rounds 3
    .deps/venv/bin/python benches/against_peers.py --peers ../shared/peers --rounds 1 --steps 2 --size 1b-128k --only distill \
        --ours=--stream-teacher

The student of the distillation has the body of --student (hidden width, layers, heads) and the teacher's vocabulary, at random.
Both sides get the same folder, tokens, batch, window and number of steps, the same threads, and leave loading and the
first training step out. The ratio is of medians; the spread of each side is printed beside it.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH, SEQ = 4, 512


def run(command):
    """Output of a child, and its peak resident memory in MiB."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.PIPE, text=True)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{errors}")
    return text, usage.ru_maxrss / 1024


def ours_score(a, folder, tokens):
    text, rss = run([a.minitron, "score", folder, "--data", tokens, "--out", a.work / "ours.safetensors", "--force",
                     "--seq-len", SEQ, "--batch-size", BATCH, "--samples", a.windows, "--json", "--quiet"])
    return json.loads(text)["tokens_per_second"], rss


def peer_score(a, folder, tokens):
    text, rss = run([sys.executable, a.peers / "calibrate_hf.py", folder, tokens, BATCH, SEQ, a.work / "peer.safetensors"])
    return float(re.search(r"tok_per_s ([\d.]+)", text)[1]), rss


def ours_distill(a, folder, tokens):
    text, rss = run([a.minitron, "distill", "--teacher", folder, "--student", a.student, "--data", tokens,
                     "--tokens", a.steps * BATCH * SEQ, "--seq-len", SEQ, "--batch-size", BATCH, "--lr", "1e-4",
                     "--checkpoint-every", 10**9, "--out", a.work / "distilled", "--force", "--json", "--quiet", *a.ours])
    return json.loads(text)["tokens_per_second"], rss


def peer_distill(a, folder, tokens):
    text, rss = run([sys.executable, a.peers / "distill_hf.py", folder, a.student, tokens, BATCH, SEQ, a.steps])
    return float(re.search(r"tok_per_s ([\d.]+)", text)[1]), rss


def make_student(a):
    """The body of one of the peers' sizes with the vocabulary of another."""
    folder = a.work / f"llama-{a.student}-of-{a.size}"
    script = ("import sys, torch, hf_llama; c = hf_llama.config(sys.argv[1]); c.vocab_size = hf_llama.SIZES[sys.argv[2]][5]; "
              "torch.manual_seed(1); hf_llama.LlamaForCausalLM(c).save_pretrained(sys.argv[3])")
    if not (folder / "config.json").exists():
        os.environ["PYTHONPATH"] = str(a.peers)
        run([sys.executable, "-c", script, a.student, a.size, folder])
    return folder


def compare(name, ours, peer, a, folder, tokens):
    speeds, memory = {"ours": [], "peer": []}, {"ours": [], "peer": []}
    for number in range(a.rounds):
        sides = [("ours", ours), ("peer", peer)]
        for side, job in sides if number % 2 == 0 else sides[::-1]:
            speed, rss = job(a, folder, tokens)
            speeds[side].append(speed)
            memory[side].append(rss)
            print(f"{name} round {number} {side}: {speed:.1f} tokens/s, {rss:.0f} MiB", file=sys.stderr, flush=True)
    median = {side: statistics.median(values) for side, values in speeds.items()}
    peak = {side: max(values) for side, values in memory.items()}
    return {
        "job": name,
        "ours_tokens_per_second": round(median["ours"], 1),
        "peer_tokens_per_second": round(median["peer"], 1),
        "ratio": round(median["ours"] / median["peer"], 3),
        "ours_spread": [round(min(speeds["ours"]), 1), round(max(speeds["ours"]), 1)],
        "peer_spread": [round(min(speeds["peer"]), 1), round(max(speeds["peer"]), 1)],
        "ours_peak_mib": round(peak["ours"]),
        "memory_ratio": round(peak["ours"] / peak["peer"], 3),
        "peer_peak_mib": round(peak["peer"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder with make.py, calibrate_hf.py, distill_hf.py")
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, default=ROOT / "out/peers", help="models and scratch files")
    parser.add_argument("--size", default="130m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=32, help="windows scored")
    parser.add_argument("--steps", type=int, default=4, help="training steps, the first of which is not timed")
    parser.add_argument("--student", default="60m", help="size whose body the student has")
    parser.add_argument("--ours", action="append", default=[], help="a further option of `minitron distill`")
    parser.add_argument("--only", choices=["score", "distill"])
    a = parser.parse_args()
    a.peers, a.work = a.peers.resolve(), a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    folder, tokens = a.work / f"llama-{a.size}", a.work / f"tokens-{a.size}.npy"
    if not tokens.exists():
        run([sys.executable, a.peers / "make.py", a.work, a.size, a.windows * SEQ])
    results = []
    if a.only != "distill":
        results.append(compare("score", ours_score, peer_score, a, folder, tokens))
    if a.only != "score":
        a.student = make_student(a)
        results.append(compare("distill", ours_distill, peer_distill, a, folder, tokens))
    print(json.dumps({"batch": BATCH, "seq_len": SEQ, "rounds": a.rounds, "cores": os.cpu_count(), "results": results}, indent=1))


main()
