"""Which learning rate a distillation wants, by where its student starts.

    .deps/venv/bin/python benches/rates.py --work out/rates
    .deps/venv/bin/python benches/rates.py --half prose-llama --tokens 163840 --rates 3e-4 1e-3 --work out/rates

Students of three models, each cut plainly, refitted by least squares, and by `auto`, are distilled at every rate of a grid and at the
rate that `distill` chooses. Drives the command line; KL to the original in nats on 64 windows of 256 held-out tokens. A cell that is in
WORK/cells.json is not run again. Markdown goes to stdout.
"""

import argparse
import shutil
from pathlib import Path

from reconstruction import AXES, DATA, HALF, ROOT, SEQ_LEN, TRAIN, VALID, Table, text

STORIES = DATA / "text/tinystories_800.jsonl"
TEXTS = {"stories260K": (f"{STORIES}#..-100", f"{STORIES}#-100..")}
SIZES = {name: (name, sizes) for name, sizes in HALF.items()}
SIZES |= {f"stories260K-{n}": ("stories260K", ["--hidden", str(n)]) for n in (48, 56)}
STARTS = {"plain cut": [], "least squares": ["least_squares"], "auto": ["auto"]}
RATES = ["1e-4", "2e-4", "3e-4", "6e-4", "1e-3", "2e-3", "4e-3"]
CHOSEN = "chosen"


class Rates(Table):
    def texts(self, model):
        return TEXTS.get(model, (TRAIN, VALID))

    def kl(self, model, student):
        _, valid = self.texts(model)
        return self.minitron("eval", student, "--teacher", DATA / "models" / model, *text(valid, 64))["kl_to_teacher"]

    def scores(self, model):
        path = self.a.work / f"{model}.safetensors"
        if not path.exists():
            self.minitron("score", DATA / "models" / model, *text(self.texts(model)[0], 64), "--out", path)
        return path

    def student(self, half, start):
        """Pruned once; with its KL before any training."""
        out, (model, sizes) = self.a.work / f"{half}-{start.replace(' ', '-')}", SIZES[half]
        if not out.exists():
            tags = [word for tag in STARTS[start] for word in ("--reconstruct", tag)]
            words = text(self.texts(model)[0], 64) + tags if tags else []
            scores = ["--scores", self.scores(model), *AXES, *sizes]
            self.minitron("prune", DATA / "models" / model, *scores, *words, "--out", out)
        return out, self.kept(f"{half}/{start}", lambda: {"kl": self.kl(model, out)})

    def distilled(self, half, start, rate):
        """KL after a training at this rate."""
        (student, _), model = self.student(half, start), SIZES[half][0]
        a, out = self.a, self.a.work / f"distilled-{half}"
        words = ["--data", self.texts(model)[0], "--tokens", a.tokens, "--seq-len", SEQ_LEN, "--batch-size", a.batch_size]
        words += [] if rate == CHOSEN else ["--lr", rate]
        teacher = DATA / "models" / model

        def train():
            shutil.rmtree(out, ignore_errors=True)
            report = self.minitron("distill", "--teacher", teacher, "--student", student, *words, "--out", out)
            return {"kl": self.kl(model, out), "lr": report.get("lr")}

        return self.kept(f"{half}/{start}/{a.tokens}/{a.batch_size}/{rate}", train)


def rates(table, a):
    print(f"\n{a.tokens:,} tokens, batches of {a.batch_size} × {SEQ_LEN}\n")
    print("| start | KL at the start | " + " | ".join(a.rates) + " |")
    print("|---" * (len(a.rates) + 2) + "|")
    for half in a.half:
        for start in a.start:
            cells = [table.distilled(half, start, rate) for rate in a.rates]
            words = [f"{table.student(half, start)[1]['kl']:.4f}", *map(shown, cells)]
            print(f"| {half}, {start} | " + " | ".join(words) + " |", flush=True)


def shown(cell):
    return f"{cell['kl']:.4f}" + (f" at {cell['lr']:.1e}" if cell["lr"] else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, default=ROOT / "out/rates")
    parser.add_argument("--half", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--start", nargs="*", choices=STARTS, default=list(STARTS))
    parser.add_argument("--rates", nargs="*", default=[*RATES, CHOSEN])
    parser.add_argument("--tokens", type=int, default=40960)
    parser.add_argument("--batch-size", type=int, default=8)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    rates(Rates(a), a)


if __name__ == "__main__":
    main()
