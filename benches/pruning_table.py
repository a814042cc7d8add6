"""The held-out loss of every metric on every axis, a quarter and a half of the axis removed, without and with healing, on two
small models; nothing is retrained.

    python3 benches/pruning_table.py --work out/pruning-table

Drives the command line: one `score` per model, then `prune --by METRIC` and `eval` per cell. A cell that is in
WORK/cells.json already is not run again; one that fails is shown as its error and left out of the averages. Markdown goes to
stdout, the same figures to WORK/table.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "../shared/data"
SEQ_LEN, SAMPLES = 256, 128
METRICS = ["activation", "magnitude", "taylor", "random", "block_influence", "perplexity"]
WIDTH = ["activation", "magnitude", "taylor", "random"]
DEPTH = ["block_influence", "perplexity", "magnitude", "taylor", "random"]
AXES = {"mlp": WIDTH, "heads": WIDTH, "kv_heads": WIDTH, "hidden": WIDTH, "depth": DEPTH}
DEFAULT = {"mlp": "activation", "heads": "activation", "kv_heads": "activation", "hidden": "activation", "depth": "block_influence"}
FLAG = {"mlp": "--mlp", "heads": "--heads", "kv_heads": "--kv-heads", "hidden": "--hidden", "depth": "--layers"}
HEALINGS = {"mlp": [["least_squares"]], "heads": [["least_squares"]], "kv_heads": [["least_squares"]], "depth": [["least_squares"]],
            "hidden": [["least_squares"], ["rotation", "least_squares"]]}
SHARES = [0.25, 0.5]
# Of less excess than this, the share that healing cuts is noise.
LEAST_EXCESS = 0.01


class Failed(Exception):
    pass


class Table:
    def __init__(self, a):
        self.a, self.cells_path = a, a.work / "cells.json"
        self.cells = json.loads(self.cells_path.read_text()) if self.cells_path.exists() else {}

    def minitron(self, *words):
        """The JSON that a command prints."""
        command = [self.a.minitron, *words, "--json", "--quiet", *self.a.common.split()]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
        return json.loads(done.stdout)

    def cell(self, key, job):
        """What a job gives, run once."""
        if key in self.cells and "error" not in self.cells[key]:
            return self.cells[key]
        start = time.perf_counter()
        try:
            self.cells[key] = job() | {"seconds": round(time.perf_counter() - start, 1)}
        except Failed as error:
            self.cells[key] = {"error": str(error)}
        part = self.cells_path.with_suffix(".part")
        part.write_text(json.dumps(self.cells, indent=1))
        part.replace(self.cells_path)
        print(f"{key}: {self.cells[key]}", file=sys.stderr, flush=True)
        return self.cells[key]


def models(a):
    """Name, folder, calibration text, held-out text and flags of its evaluation."""
    stories = a.text_dir / "tinystories_800.jsonl"
    yield "stories260K", a.models_dir / "stories260K", f"{stories}#..-100", f"{stories}#-100..", []
    texts = []
    for part in ["train", "valid"]:
        source, text = a.text_dir / f"wikitext-2/wiki.{part}.tokens", a.work / f"wiki.{part}.txt"
        if source.exists() and not text.exists():
            shutil.copyfile(source, text)
        texts.append(str(text))
    yield "prose-llama", a.models_dir / "prose-llama", *texts, ["--samples", 64]


def sizes(full, step):
    """The legal size nearest to each share, the full one left out, and each size once."""
    legal = list(range(step, full, step))
    nearest = [min(legal, key=lambda size: (abs(size - full * (1 - share)), size)) for share in SHARES if legal]
    return list(dict.fromkeys(nearest))


def measure(table, name, folder, calibration, held_out, eval_flags):
    """All cells of a model, and its own loss."""
    a, scores = table.a, table.a.work / f"{name}.safetensors"
    evaluate = lambda model: {"loss": table.minitron("eval", model, "--data", held_out, "--seq-len", SEQ_LEN, *eval_flags)["loss"]}
    inspected = table.minitron("inspect", folder)
    dense = table.cell(f"{name}/dense", lambda: evaluate(folder))
    if "error" in dense:
        raise Failed(f"{name}: {dense['error']}")
    if not scores.exists():
        metrics = [word for metric in METRICS for word in ("--metric", metric)]
        table.minitron("score", folder, "--data", calibration, "--out", scores, "--seq-len", SEQ_LEN, "--samples", SAMPLES, *metrics)

    def pruned(axis, size, metric, healing):
        out = a.work / "student"
        words = ["prune", folder, "--scores", scores, "--by", metric, FLAG[axis], size, "--out", out, "--force"]
        words += ["--axis", "mlp:multiple_of=1"] if axis == "mlp" else []
        words += [word for heal in healing for word in ("--heal", heal)]
        words += ["--data", calibration, "--seq-len", SEQ_LEN, "--samples", SAMPLES] if healing else []
        table.minitron(*words)
        return evaluate(out)

    rows = []
    for axis, metrics in AXES.items():
        legal = inspected["legal_sizes"][axis]
        for size in sizes(legal["full"], 1 if axis == "mlp" else legal["multiple_of"]):
            for metric in metrics:
                row = {"model": name, "axis": axis, "full": legal["full"], "size": size, "metric": metric,
                       "dense": dense["loss"], "loss": {}, "errors": {}}
                for healing in [[], *HEALINGS[axis]]:
                    label = "+".join(healing) or "plain"
                    cell = table.cell(f"{name}/{axis}/{size}/{metric}/{label}", lambda: pruned(axis, size, metric, healing))
                    if "error" in cell:
                        row["errors"][label] = cell["error"]
                    else:
                        row["loss"][label] = cell["loss"]
                rows.append(row)
    return rows


def mean(values):
    return round(statistics.fmean(values), 4) if values else None


def cut(row, healing):
    """The share of the excess loss over the dense model that a healing removes, where both were measured."""
    plain, healed = row["loss"].get("plain"), row["loss"].get(healing)
    if plain is None or healed is None or plain - row["dense"] < LEAST_EXCESS:
        return None
    return (plain - healed) / (plain - row["dense"])


def healing_averages(rows):
    """Mean share per axis and healing, and over all axes with each axis's last one, its strongest."""
    found = {}
    for axis, healings in HEALINGS.items():
        for healing in map("+".join, healings):
            shares = [share for row in rows if row["axis"] == axis and (share := cut(row, healing)) is not None]
            found[f"{axis}, {healing}"] = {"cut": mean(shares), "cells": len(shares)}
    # A quarter is out of reach of query heads that come two to a key/value head: what is nearest counts as half.
    groups = {"": rows, " at 50 %": [row for row in rows if row["size"] <= 0.6 * row["full"]]}
    for label, pick in [("all axes, least_squares", 0), ("all axes, the last healing of each", -1)]:
        for where, group in groups.items():
            shares = [share for row in group if (share := cut(row, "+".join(HEALINGS[row["axis"]][pick]))) is not None]
            found[label + where] = {"cut": mean(shares), "cells": len(shares)}
    return found


def metric_averages(rows):
    """Mean excess loss of each axis's default metric as a share of another metric's, unhealed, same model and size."""
    found = {}
    for other in ["random", "magnitude"]:
        for axis in [*AXES, None]:
            shares, wins = [], 0
            for row in rows:
                if axis in (row["axis"], None) and row["metric"] == DEFAULT[row["axis"]] and "plain" in row["loss"]:
                    same = [r for r in rows if r["metric"] == other and "plain" in r["loss"]
                            and all(r[key] == row[key] for key in ("model", "axis", "size"))]
                    for r in same:
                        excess = r["loss"]["plain"] - r["dense"]
                        wins += row["loss"]["plain"] < r["loss"]["plain"]
                        if excess >= LEAST_EXCESS:
                            shares.append((row["loss"]["plain"] - row["dense"]) / excess)
            found[f"{axis or 'all axes'}, default to {other}"] = {"excess": mean(shares), "cells": len(shares), "better": wins}
    return found


def markdown(rows, healing, metrics):
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        lines += [f"### {model}, dense loss {mine[0]['dense']:.4f}", "",
                  "| axis | size | metric | pruned | least squares | rotation, then least squares |", "|---|---|---|---|---|---|"]
        for row in mine:
            # A size that no config of the family can state is refused by the plan; anything else is a failure.
            failure = lambda error: "not legal" if error.startswith("error: plan:") else "failed"
            number = lambda label: (f"{row['loss'][label]:.4f}" if label in row["loss"]
                                    else failure(row["errors"][label]) if label in row["errors"] else "")
            cells = [number(label) for label in ("plain", "least_squares", "rotation+least_squares")]
            lines.append(f"| {row['axis']} | {row['size']} of {row['full']} | {row['metric']} | {' | '.join(cells)} |")
        lines.append("")
    percent = lambda value: "none" if value is None else f"{100 * value:.1f} %"
    lines += ["| healing | share of the excess loss it cuts | cells |", "|---|---|---|"]
    lines += [f"| {label} | {percent(found['cut'])} | {found['cells']} |" for label, found in healing.items()]
    lines += ["", "| metrics | excess loss, as a share of the other's | cells | better in |", "|---|---|---|---|"]
    lines += [f"| {label} | {percent(found['excess'])} | {found['cells']} | {found['better']} |" for label, found in metrics.items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=DATA / "models")
    parser.add_argument("--text-dir", type=Path, default=DATA / "text")
    parser.add_argument("--work", type=Path, default=ROOT / "out/pruning-table")
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--only", help="one of the models")
    parser.add_argument("--common", default="", help="flags for every command, for example '--threads 2'")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    table, rows = Table(a), []
    for name, *rest in models(a):
        if a.only in (name, None):
            try:
                rows += measure(table, name, *rest)
            except Failed as error:
                sys.exit(f"{name}: {error}")
    healing, metrics = healing_averages(rows), metric_averages(rows)
    (a.work / "table.json").write_text(json.dumps({"rows": rows, "healing": healing, "metrics": metrics}, indent=1))
    print(markdown(rows, healing, metrics))


if __name__ == "__main__":
    main()
