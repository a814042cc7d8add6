"""What a metric costs that comes from a library or from TorchScript, beside the built-in one that measures the same: `minitron score`
on a Llama of 130M parameters, in alternating runs on one machine.

    .deps/venv/bin/python benches/against_peers.py --peers ../shared/peers --rounds 1 --only score     # makes the model
    .deps/venv/bin/python benches/plugin_overhead.py --rounds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def speed(a, metric, plugin):
    """Tokens per second."""
    command = [ROOT / "target/release/minitron", *plugin, "score", a.work / "llama-130m", "--data", a.work / "tokens-130m.npy",
               "--out", a.work / "overhead.safetensors", "--force", "--seq-len", 512, "--batch-size", 4, "--samples", a.windows,
               "--metric", metric, "--json", "--quiet"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out/peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=16)
    a = parser.parse_args()
    script = a.work / "importance.pt"
    subprocess.run([sys.executable, ROOT / "examples/pytorch/importance.py", script], check=True)
    library = ["--plugin", ROOT / "target/release/libminitron_examples.so"]
    sides = {
        "built-in": ("activation:batch=l2,seq=mean", []),
        "library": ("mean_power", library),
        "TorchScript": (f"torchscript:path={script}", []),
    }
    found = {side: [] for side in sides}
    for number in range(a.rounds):
        order = list(sides)
        for side in order[number % 3:] + order[:number % 3]:
            found[side].append(speed(a, *sides[side]))
            print(f"round {number} {side}: {found[side][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    median = {side: statistics.median(values) for side, values in found.items()}
    print(json.dumps({
        side: {"tokens_per_second": round(median[side], 1), "spread": [round(min(v), 1), round(max(v), 1)],
               "time_of_the_built_in": round(median["built-in"] / median[side], 3)} for side, v in found.items()
    }, indent=1))


main()
