"""Two builds of `minitron` on one machine, in alternating runs of the same commands: wall time, CPU time and peak memory of the
whole process, each the median over rounds, and the median of the ratios of each pair.

    python3 benches/pairs.py BEFORE --model DIR --text FILE --work DIR --rounds 5
    python3 benches/pairs.py BEFORE --large DIR --work DIR --rounds 3

The first scores a model, prunes it to three quarters and distils the student for a few steps. The second prunes the folder that
`llama_8b.py --keep` leaves. WORK is for what they write.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def timed(command):
    """Seconds on the clock and of the processors, and peak resident MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{errors}")
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def commands(a):
    """Name and arguments of what is timed, and what has to be there before."""
    if a.large:
        sizes = ["--hidden", 3072, "--mlp", 9216]
        yield "prune 8B", ["prune", a.large, "--scores", a.large.parent / "scores.safetensors", *sizes, "--out", a.work / "large"]
        return
    config = json.loads((a.model / "config.json").read_text())
    sizes = ["--hidden", config["hidden_size"] * 3 // 4, "--mlp", config["intermediate_size"] * 3 // 4]
    reading = ["--data", a.text, "--seq-len", 256]
    scores, student = a.work / "scores.safetensors", a.work / "student"
    yield "score", ["score", a.model, *reading, "--samples", a.samples, "--out", scores]
    yield "prune", ["prune", a.model, "--scores", scores, *sizes, "--out", student]
    yield "distil", ["distill", "--teacher", a.model, "--student", student, *reading, "--tokens", a.tokens, "--out", a.work / "out"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other build's program")
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--model", type=Path, help="a folder to score, prune and distil")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--large", type=Path, help="a folder of llama_8b.py to prune")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", default="20K")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    if not a.large and not (a.model and a.text):
        parser.error("give --model and --text, or --large")
    a.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, arguments in commands(a):
        arguments = [*arguments, "--quiet", "--force"]
        timed([a.minitron, *arguments])  # Files enter the page cache, and what the next command reads is there; not counted.
        runs = {"before": [], "after": []}
        for number in range(a.rounds):
            sides = [("before", a.before), ("after", a.minitron)]
            for side, program in sides if number % 2 == 0 else reversed(sides):
                os.sync()
                runs[side].append(timed([program, *arguments]))
                print(f"{name}, round {number}, {side}: {runs[side][-1]['wall_s']:.2f} s", file=sys.stderr, flush=True)
        rows = {}
        for figure in ["wall_s", "cpu_s", "peak_mib"]:
            before, after = ([run[figure] for run in runs[side]] for side in ("before", "after"))
            ratios = [late / early for early, late in zip(before, after)]
            rows[figure] = {
                "before": round(statistics.median(before), 3),
                "after": round(statistics.median(after), 3),
                "ratio": round(statistics.median(ratios), 4),
                "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        found[name] = rows
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
