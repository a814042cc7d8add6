"""What closed-form reconstruction is worth before any training: half of two small models, at equal numbers of parameters.

    .deps/venv/bin/python benches/reconstruction.py --work out/reconstruction
    .deps/venv/bin/python benches/reconstruction.py --only ingredients --work out/reconstruction

`seeds`: the plain cut beside `prune --data`, calibrated on three texts of 16K tokens. `texts`: 2K, 16K and 128K tokens of the same
kind of text and of another; `texts-distilled`: the same after 40K tokens of distillation. `ingredients`: each part of the
reconstruction taken away in turn. `depth`: 8 to 6, 5 and 4 layers. `held-out`: other sizes, calibrations and texts than those above, chosen
before they were run. `sampling`: the first windows of the text beside windows all over it. `apart`: half of all parameters by layers
that differ, the channels chosen on other text. `tokens`: how much distillation the reconstructed student needs until it is where the
plain cut comes with 400K tokens.
Drives the command line; KL to the original and loss in nats on 64 windows of 256 held-out tokens. A cell that is in WORK/cells.json is
not run again, so WORK is of one version of the program. Markdown goes to stdout.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "../shared/data"
TRAIN = DATA / "text/wikitext-2/wiki.train.tokens"
VALID = DATA / "text/wikitext-2/wiki.valid.tokens"
OTHER = DATA / "text/classics/bleak_house.txt"
UNSEEN = DATA / "eval/lambada_openai_test_even.jsonl"
SEQ_LEN = 256
# Of the text before the part that chooses; the tables' own text measures.
APART_SAMPLES, APART_CHANNELS = 512, [152, 160, 168, 176, 184]
AXES = ["--axis", "hidden", "--axis", "depth", "--axis", "mlp:multiple_of=16"]
HALF = {"prose-llama": ["--hidden", "160", "--mlp", "496"], "prose-nemotron": ["--hidden", "160", "--mlp", "464"]}
DEEP = {"prose-llama": ["--layers", "5"]}
HELD_OUT = {"prose-llama": ["--hidden", "128", "--mlp", "384"], "prose-nemotron": ["--hidden", "192", "--mlp", "512"]}
ROTATION, REFIT, FACTOR = "rotation:basis=readers,spread=true", "least_squares", "temperature_scaling"
INGREDIENTS = {
    "all (`auto`)": ["auto"],
    "components by variance": ["rotation:spread=true", REFIT, FACTOR],
    "channels instead of components": ["norm_rescale", REFIT, FACTOR],
    "channels, gains as they are": [REFIT, FACTOR],
    "readers as they are": [ROTATION, "least_squares:readers=false", FACTOR],
    "writers as they are": [ROTATION, "least_squares:writers=false", FACTOR],
    "no least squares": [ROTATION, FACTOR],
    "one ridge, 1e-3": [ROTATION, "least_squares:ridge=1e-3", FACTOR],
    "logits of another scale": [ROTATION, REFIT],
    "a second sweep": [ROTATION, REFIT, REFIT, FACTOR],
    "a head of its own": ["rotation:basis=readers,spread=true,untie=true", REFIT, FACTOR],
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

    def scores(self, model, data=TRAIN, samples=64):
        name = model if data == TRAIN else f"{model}-{data.stem}"
        path = self.a.work / f"{name}{'' if samples == 64 else f'-{samples}'}.safetensors"
        if not path.exists():
            self.minitron("score", DATA / "models" / model, *text(data, samples), "--out", path)
        return path

    def pruned(self, name, model, sizes, words, scored_on=TRAIN):
        """The folder of a student that is pruned so."""
        return self.pruned_so(name, model, self.scores(model, scored_on), [*AXES, *sizes, *words])

    def pruned_so(self, name, model, scores, words):
        """The folder of a student that these scores and options make."""
        out = self.a.work / "pruned" / slug(name)
        if not out.exists():
            self.minitron("prune", DATA / "models" / model, "--scores", scores, *words, "--out", out)
        return out

    def distilled(self, name, model, student, tokens, lr, seed=0):
        """The folder of a student that learned from the original."""
        out = self.a.work / "distilled" / slug(name)
        if not (out / "config.json").exists():
            words = ["--data", TRAIN, "--seq-len", SEQ_LEN, "--batch-size", 8, "--tokens", tokens, "--lr", lr, "--seed", seed]
            self.minitron("distill", "--teacher", DATA / "models" / model, "--student", student, *words, "--out", out, "--force")
        return out

    def measured(self, name, model, make, held_out=("--data", VALID)):
        """What `eval` says of the folder that `make` gives."""

        def measure():
            words = [*held_out, "--samples", 64, "--seq-len", SEQ_LEN]
            found = self.minitron("eval", make(), "--teacher", DATA / "models" / model, *words)
            return {"n_params": found["n_params"], "kl": found["kl_to_teacher"], "loss": found["loss"]}

        return self.kept(name, measure)

    def cell(self, name, model, sizes, words):
        """A student that is pruned so, measured."""
        return self.measured(name, model, lambda: self.pruned(name, model, sizes, words))

    def kept(self, name, measure):
        """A cell that is measured once."""
        if name not in self.cells:
            self.cells[name] = measure()
            self.path.write_text(json.dumps(self.cells, indent=1))
        return self.cells[name]

    def trained(self, name, model, sizes, words, tokens, lr):
        """A student that is pruned so and distilled, measured. `name` is that of the pruned one."""
        run = f"{name}/{tokens}-{lr}"
        return self.measured(run, model, lambda: self.distilled(run, model, self.pruned(name, model, sizes, words), tokens, lr))


def slug(name):
    return name.replace("/", "+").replace(" ", "_")


def text(path, samples):
    return ["--data", path, "--samples", samples, "--seq-len", SEQ_LEN]


def excerpt(table, name, path, start, end):
    """Characters of a text, from one share of it to another, as a file of its own."""
    out = table.a.work / f"{name}.txt"
    words = path.read_text()
    out.write_text(words[int(start * len(words)) : int(end * len(words))])
    return out


def seeds(table):
    print("\n| half of | parameters | plain cut | first text | second | third |\n|---|---|---|---|---|---|")
    for model, sizes in HALF.items():
        plain = table.cell(f"{model}/plain", model, sizes, [])
        found = [table.cell(f"{model}/text-{idx}", model, sizes, text(excerpt(table, f"third-{idx}", TRAIN, idx / 3, (idx + 1) / 3), 64)) for idx in range(3)]
        kls = " | ".join(f"{cell['kl']:.4f}" for cell in [plain, *found])
        print(f"| {model} | {plain['n_params']:,} | {kls} |", flush=True)


def calibrations():
    """Name, samples and path of each calibration text."""
    return [[(f"prose-llama/{name}-{samples}", text(path, samples)) for name, path in [("same", TRAIN), ("other", OTHER)]] for samples in [8, 64, 512]]


def texts(table):
    print("\n| calibration tokens | of the same kind | of another |\n|---|---|---|")
    for (same, words), (other, others) in calibrations():
        kls = [table.cell(name, "prose-llama", HALF["prose-llama"], data)["kl"] for name, data in [(same, words), (other, others)]]
        print(f"| {words[3] * SEQ_LEN:,} | {kls[0]:.4f} | {kls[1]:.4f} |", flush=True)


def sampling(table):
    print("\n| half of | calibration tokens | the first | spread, seed 0 | seed 1 | seed 2 |\n|---|---|---|---|---|---|")
    for model, sizes in HALF.items():
        for samples in [8, 64]:
            ways = [["first"], *(["spread", "--seed", seed] for seed in range(3))]
            names = [f"{model}/sampling-{samples}-{'-'.join(map(str, way))}" for way in ways]
            cells = [table.cell(name, model, sizes, [*text(TRAIN, samples), "--sampling", *way]) for name, way in zip(names, ways)]
            kls = " | ".join(f"{cell['kl']:.4f}" for cell in cells)
            print(f"| {model} | {samples * SEQ_LEN:,} | {kls} |", flush=True)


def texts_distilled(table):
    model, sizes = "prose-llama", HALF["prose-llama"]
    print("\n| calibration tokens | of the same kind, then 40K tokens at 3e-4 | of another |\n|---|---|---|")
    for row in calibrations():
        kls = [table.trained(name, model, sizes, words, "40K", "3e-4")["kl"] for name, words in row]
        print(f"| {row[0][1][3] * SEQ_LEN:,} | {kls[0]:.4f} | {kls[1]:.4f} |", flush=True)
    for lr in ["3e-4", "1e-3", "2e-3"]:
        plain = table.trained(f"{model}/plain", model, sizes, [], "40K", lr)["kl"]
        print(f"| none: the plain cut, at {lr} | {plain:.4f} | |", flush=True)


def ingredients(table):
    print("\n| taken away | prose-llama | prose-nemotron |\n|---|---|---|")
    for label, tags in INGREDIENTS.items():
        words = text(TRAIN, 64) + [word for tag in tags for word in ("--reconstruct", tag)]
        kls = [table.cell(f"{model}/{label}", model, sizes, words)["kl"] for model, sizes in HALF.items()]
        print(f"| {label} | {kls[0]:.4f} | {kls[1]:.4f} |", flush=True)


def depth(table):
    """Dropped layers: refitted alone, and merged into those before them, which `auto` does."""
    seeds = [f"seed {seed}" for seed in range(3)]
    columns = ["plain cut", "least_squares", *(f"auto, {seed}" for seed in seeds), "auto, 131,072 tokens"]
    print(f"\n| kept of 8 layers | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for model in HALF:
        for layers in [6, 5, 4, 3]:
            name, sizes, data = f"{model}/depth-{layers}", ["--layers", layers], text(TRAIN, 64)
            cells = [table.cell(f"{name}/plain", model, sizes, [])]
            cells.append(table.cell(f"{name}/least-squares", model, sizes, [*data, "--reconstruct", "least_squares"]))
            cells += [table.cell(f"{name}/{seed}", model, sizes, [*data, "--seed", seed[-1]]) for seed in seeds]
            cells.append(table.cell(f"{name}/512", model, sizes, text(TRAIN, 512)))
            cells = " | ".join(f"{cell['kl']:.4f}, {cell['loss']:.4f}" for cell in cells)
            print(f"| {model}, {layers} | {cells} |", flush=True)


def held_out(table):
    valid = ("--data", excerpt(table, "valid-second-half", VALID, 0.5, 1))
    other = ("--data", UNSEEN, "--field", "context")
    ways = {"plain": None, "least_squares": ["--reconstruct", "least_squares"], "auto": []}
    print("\n| pruned to | calibrated at | held out | plain cut | least_squares | auto |\n|---|---|---|---|---|---|")
    for model, sizes in HELD_OUT.items():
        for idx in range(3):
            # The thirds of `seeds` begin at 0, 1/3 and 2/3.
            place = excerpt(table, f"sixth-{idx}", TRAIN, (2 * idx + 1) / 6, (2 * idx + 2) / 6)
            for label, data in [("WikiText-2", valid), ("LAMBADA", other)]:
                kls = []
                for way, words in ways.items():
                    name = f"held-out/{model}/{idx}/{way}"
                    words = [] if words is None else [*text(place, 64), *words]
                    make = lambda: table.pruned(name, model, sizes, words, place)
                    kls.append(table.measured(f"{name}/{label}", model, make, data)["kl"])
                print(f"| {model} | {2 * idx + 1}/6 | {label} | " + " | ".join(f"{kl:.4f}" for kl in kls) + " |", flush=True)
    model, sizes = next(iter(HELD_OUT.items()))
    print("\n| calibrated at | held out | plain cut, 40K tokens at 1e-3 | auto, 40K tokens at 3e-4 |\n|---|---|---|---|")
    for idx in range(3):
        for label, data in [("WikiText-2", valid), ("LAMBADA", other)]:
            found = []
            for way, lr in [("plain", "1e-3"), ("auto", "3e-4")]:
                name = f"held-out/{model}/{idx}/{way}"
                student = table.a.work / "pruned" / slug(name)
                make = lambda: table.distilled(f"{name}/40K", model, student, "40K", lr, idx)
                found.append(table.measured(f"{name}/40K/{label}", model, make, data))
            print(f"| {2 * idx + 1}/6 | {label} | " + " | ".join(f"{cell['kl']:.4f}, loss {cell['loss']:.4f}" for cell in found) + " |", flush=True)


def apart(table):
    """Layers that differ; what chooses the number of channels is neither calibrated on nor measured."""
    model = "prose-llama"
    axes = [word for axis in ["hidden:multiple_of=8", "mlp:multiple_of=8", "heads", "kv_heads", "depth"] for word in ("--axis", axis)]
    scores, blocks = table.scores(model, samples=256), table.a.work / f"{model}-blocks.json"
    if not blocks.exists():
        words = ["--layers-apart", "--scores", scores, *axes, *text(TRAIN, 64)]
        table.minitron("blocks", DATA / "models" / model, *words, "--out", blocks)
    chooser = ("--data", excerpt(table, "last-fifth", TRAIN, 0.8, 1))

    def student(place, channels):
        """Its name, and what makes it."""
        calibration = excerpt(table, f"apart-{place}", TRAIN, place * 0.8 / 3, (place + 1) * 0.8 / 3)
        words = [*axes, "--layers-apart", "--blocks", blocks, "--hidden", channels, "--ratio", 0.5, *text(calibration, APART_SAMPLES)]
        name = f"apart/{place}/{channels}"
        return name, lambda: table.pruned_so(name, model, scores, words)

    print("\n| channels | parameters | KL on the text that chooses |\n|---|---|---|")
    found = {}
    for channels in APART_CHANNELS:
        name, make = student(0, channels)
        cell = table.measured(f"{name}/chooses", model, make, chooser)
        found[channels] = cell["kl"]
        print(f"| {channels} | {cell['n_params']:,} | {cell['kl']:.4f} |", flush=True)
    best = min(found, key=found.get)
    print(f"\n| {best} channels, calibrated in | KL |\n|---|---|")
    for place in range(3):
        name, make = student(place, best)
        print(f"| part {place + 1} of 3 | {table.measured(name, model, make)['kl']:.4f} |", flush=True)


def shapes():
    """Label, model, sizes, and the names of the plain and of the reconstructed student of each shape."""
    halves = [(f"half of {model}", model, sizes, f"{model}/plain", f"{model}/same-64") for model, sizes in HALF.items()]
    return halves + [(f"5 of 8 layers of {model}", model, sizes, f"{model}/depth-plain", f"{model}/depth") for model, sizes in DEEP.items()]


def tokens(table):
    print("\n| student | tokens | rate | KL | loss |\n|---|---|---|---|---|")

    def line(label, budget, lr, cell):
        print(f"| {label} | {budget} | {lr} | {cell['kl']:.4f} | {cell['loss']:.4f} |", flush=True)

    words = text(TRAIN, 64)
    for label, model, sizes, plain, repaired in shapes():
        line(f"{label}, plain cut", "0", "", table.cell(plain, model, sizes, []))
        line(f"{label}, reconstructed", "0", "", table.cell(repaired, model, sizes, words))
        for budget in ["12K", "40K", "100K"]:
            line(f"{label}, reconstructed", budget, "3e-4", table.trained(repaired, model, sizes, words, budget, "3e-4"))
    for label, model, sizes, plain, repaired in shapes():
        line(f"{label}, plain cut", "400K", "1e-3", table.trained(plain, model, sizes, [], "400K", "1e-3"))
        line(f"{label}, reconstructed", "400K", "3e-4", table.trained(repaired, model, sizes, words, "400K", "3e-4"))


def main():
    tables = {
        "seeds": seeds,
        "texts": texts,
        "texts-distilled": texts_distilled,
        "ingredients": ingredients,
        "depth": depth,
        "held-out": held_out,
        "sampling": sampling,
        "apart": apart,
        "tokens": tokens,
    }
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
