"""What closed-form reconstruction is worth before any training: half of two small models, at equal numbers of parameters.

    .deps/venv/bin/python benches/reconstruction.py --work out/reconstruction
    .deps/venv/bin/python benches/reconstruction.py --only ingredients --work out/reconstruction

`seeds`: the plain cut beside `prune --data`, calibrated on three texts of 16K tokens. `texts`: 2K, 16K and 128K tokens of the same
kind of text and of another. `ingredients`: each part of the reconstruction taken away in turn. `depth`: 8 to 5 layers.
Drives the command line; KL to the original and loss in nats on 64 windows of 256 held-out tokens. A cell that is in WORK/cells.json is
not run again. Markdown goes to stdout.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "../shared/data"
TRAIN = DATA / "text/wikitext-2/wiki.train.tokens"
VALID = DATA / "text/wikitext-2/wiki.valid.tokens"
OTHER = DATA / "text/classics/bleak_house.txt"
SEQ_LEN = 256
AXES = ["--axis", "hidden", "--axis", "depth", "--axis", "mlp:multiple_of=16"]
HALF = {"prose-llama": ["--hidden", "160", "--mlp", "496"], "prose-nemotron": ["--hidden", "160", "--mlp", "464"]}
DEEP = {"prose-llama": ["--layers", "5"]}
ROTATION = "rotation:basis=readers,spread=true"
INGREDIENTS = {
    "all (`auto`)": ["auto"],
    "components by variance": ["rotation:spread=true", "least_squares"],
    "channels instead of components": ["norm_rescale", "least_squares"],
    "channels, gains as they are": ["least_squares"],
    "readers as they are": [ROTATION, "least_squares:readers=false"],
    "writers as they are": [ROTATION, "least_squares:writers=false"],
    "no least squares": [ROTATION],
    "one ridge, 1e-3": [ROTATION, "least_squares:ridge=1e-3"],
    "a second sweep": [ROTATION, "least_squares", "least_squares"],
    "a head of its own": ["rotation:basis=readers,spread=true,untie=true", "least_squares"],
    "nothing": ["none"],
}


class Table:
    def __init__(self, a):
        self.a, self.path = a, a.work / "cells.json"
        self.cells = json.loads(self.path.read_text()) if self.path.exists() else {}

    def minitron(self, *words):
        command = [self.a.minitron, *words, "--json", "--quiet"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def scores(self, model):
        path = self.a.work / f"{model}.safetensors"
        if not path.exists():
            self.minitron("score", DATA / "models" / model, "--data", TRAIN, "--samples", 64, "--seq-len", SEQ_LEN, "--out", path)
        return path

    def cell(self, name, model, sizes, words):
        """A student that is pruned so, measured."""

        def measure():
            out, teacher = self.a.work / "student", DATA / "models" / model
            shutil.rmtree(out, ignore_errors=True)
            report = self.minitron("prune", teacher, "--scores", self.scores(model), *AXES, *sizes, *words, "--out", out)
            measured = self.minitron("eval", out, "--teacher", teacher, "--data", VALID, "--samples", 64, "--seq-len", SEQ_LEN)
            return {"n_params": report["n_params"], "kl": measured["kl_to_teacher"], "loss": measured["loss"]}

        return self.kept(name, measure)

    def kept(self, name, measure):
        """A cell that is measured once."""
        if name not in self.cells:
            self.cells[name] = measure()
            self.path.write_text(json.dumps(self.cells, indent=1))
        return self.cells[name]


def text(path, samples):
    return ["--data", path, "--samples", samples, "--seq-len", SEQ_LEN]


def third(table, idx):
    """A third of the training text as a file of its own."""
    path = table.a.work / f"third-{idx}.txt"
    words = TRAIN.read_text()
    size = len(words) // 3
    path.write_text(words[idx * size : (idx + 1) * size])
    return path


def seeds(table):
    print("\n| half of | parameters | plain cut | first text | second | third |\n|---|---|---|---|---|---|")
    for model, sizes in HALF.items():
        plain = table.cell(f"{model}/plain", model, sizes, [])
        found = [table.cell(f"{model}/text-{idx}", model, sizes, text(third(table, idx), 64)) for idx in range(3)]
        kls = " | ".join(f"{cell['kl']:.4f}" for cell in [plain, *found])
        print(f"| {model} | {plain['n_params']:,} | {kls} |", flush=True)


def texts(table):
    print("\n| calibration tokens | of the same kind | of another |\n|---|---|---|")
    model, sizes = "prose-llama", HALF["prose-llama"]
    for samples in [8, 64, 512]:
        kls = [table.cell(f"{model}/{name}-{samples}", model, sizes, text(path, samples))["kl"] for name, path in [("same", TRAIN), ("other", OTHER)]]
        print(f"| {samples * SEQ_LEN:,} | {kls[0]:.4f} | {kls[1]:.4f} |", flush=True)


def ingredients(table):
    print("\n| taken away | prose-llama | prose-nemotron |\n|---|---|---|")
    for label, tags in INGREDIENTS.items():
        words = text(TRAIN, 64) + [word for tag in tags for word in ("--reconstruct", tag)]
        kls = [table.cell(f"{model}/{label}", model, sizes, words)["kl"] for model, sizes in HALF.items()]
        print(f"| {label} | {kls[0]:.4f} | {kls[1]:.4f} |", flush=True)


def depth(table):
    print("\n| layers kept | plain cut | reconstructed |\n|---|---|---|")
    for model, sizes in DEEP.items():
        plain = table.cell(f"{model}/depth-plain", model, sizes, [])
        repaired = table.cell(f"{model}/depth", model, sizes, text(TRAIN, 64))
        print(f"| 5 of 8 of {model} | {plain['kl']:.4f} | {repaired['kl']:.4f} |", flush=True)


def main():
    tables = {"seeds": seeds, "texts": texts, "ingredients": ingredients, "depth": depth}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, default=ROOT / "out/reconstruction")
    parser.add_argument("--only", choices=tables)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    table = Table(a)
    for name, make in tables.items():
        if a.only in (None, name):
            make(table)


if __name__ == "__main__":
    main()
