"""What quantising costs students that were reconstructed, beside plain cuts of the same size.

    .deps/venv/bin/python benches/quantised.py --work out/quantised
    .deps/venv/bin/python benches/quantised.py --work out/quantised --tokens 100K

Half of two small models, to sizes that are multiples of 32. Every matrix and table of a student is rounded to llama.cpp's Q8_0 or Q4_0
(blocks of 32 values along a row, an f16 scale each) and written as f32 again. KL to the original on 64 windows of 256 tokens of
WikiText-2's validation text; students are calibrated on 64 windows of its training text. With --tokens they are distilled first, on that text and at the rate that `distill`
chooses, in steps of 8 windows. Markdown goes to stdout.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "../shared/data"
TRAIN, VALID = (DATA / f"text/wikitext-2/wiki.{part}.tokens" for part in ["train", "valid"])
WINDOWS = ["--samples", 64, "--seq-len", 256]
HALF = {"prose-llama": ["--hidden", 160, "--mlp", 512], "prose-nemotron": ["--hidden", 160, "--mlp", 480]}
WAYS = {
    "whole": None,
    "plain cut": ["none"],
    "`least_squares`": ["least_squares"],
    "`rotation:basis=readers,spread=false`, `least_squares`": ["rotation:basis=readers,spread=false", "least_squares"],
    "`rotation:basis=readers,spread=true`, `least_squares` (`auto`)": ["rotation:basis=readers,spread=true", "least_squares"],
}
BLOCK = 32


def q8_0(rows):
    blocks = rows.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    codes = blocks * inverse(scale)
    codes = np.trunc(codes + np.copysign(np.float32(0.5), codes))
    return (codes * halved(scale)).reshape(rows.shape)


def q4_0(rows):
    blocks = rows.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    codes = np.minimum(15, np.trunc(blocks * inverse(scale) + np.float32(8.5))) - 8
    return (codes * halved(scale)).reshape(rows.shape).astype(np.float32)


def inverse(scale):
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def halved(scale):
    return scale.astype(np.float16).astype(np.float32)


def check():
    """Values worked out by hand."""
    row = np.zeros((1, BLOCK), np.float32)
    row[0, :4] = [-127, 63.5, 0.4, 12.6]
    assert q8_0(row)[0, :4].tolist() == [-127, 64, 0, 13]
    row[0, :5] = [-8, 8, 3.4, -0.6, 0.5]  # scale 1: 8 is past the last code, 7
    assert q4_0(row)[0, :5].tolist() == [-8, 7, 3, -1, 1]
    row[0, :3] = [16, -16, 4.9]  # scale -2: the largest itself is exact, its opposite is not
    assert q4_0(row)[0, :3].tolist() == [16, -14, 4]
    assert not q8_0(np.zeros((2, 64), np.float32)).any() and not q4_0(np.zeros((2, 64), np.float32)).any()


def quantised(source, target, round_rows):
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            assert weight.shape[1] % BLOCK == 0, name
            weights[name] = np.ascontiguousarray(round_rows(weight), np.float32)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, default=ROOT / "out/quantised")
    parser.add_argument("--model", choices=HALF, help="one of the two alone")
    parser.add_argument("--tokens", help="of distillation before they are rounded")
    a = parser.parse_args()
    check()
    a.work.mkdir(parents=True, exist_ok=True)

    def minitron(*words):
        command = [str(word) for word in [a.minitron, *words, "--json", "--quiet"]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    print("| half of | reconstructed by | KL in f32 | in Q8_0 | added | in Q4_0 | added |\n|---|---|---|---|---|---|---|")
    for model, sizes in HALF.items():
        if a.model not in (None, model):
            continue
        teacher, scores = DATA / "models" / model, a.work / f"{model}.safetensors"
        if not scores.exists():
            minitron("score", teacher, "--data", TRAIN, *WINDOWS, "--out", scores)
        for idx, (label, tags) in enumerate(WAYS.items()):
            student = teacher if tags is None else a.work / f"{model}-{idx}"
            if not student.exists():
                axes = ["--axis", "hidden", "--axis", "mlp:multiple_of=32"]
                words = [word for tag in tags for word in ("--reconstruct", tag)]
                minitron("prune", teacher, "--scores", scores, *axes, *sizes, "--data", TRAIN, *WINDOWS, *words, "--out", student)
            if a.tokens:
                if tags is None:
                    continue
                untrained, student = student, a.work / f"{model}-{idx}-{a.tokens}"
                if not student.exists():
                    text = ["--data", TRAIN, "--tokens", a.tokens, "--seq-len", 256, "--batch-size", 8]
                    minitron("distill", "--teacher", teacher, "--student", untrained, *text, "--out", student)
            folders = [student, *(quantised(student, a.work / "rounded" / kind.__name__, kind) for kind in [q8_0, q4_0])]
            whole, eight, four = (minitron("eval", folder, "--teacher", teacher, "--data", VALID, *WINDOWS)["kl_to_teacher"] for folder in folders)
            print(f"| {model} | {label} | {whole:.5f} | {eight:.5f} | {eight - whole:.5f} | {four:.5f} | {four - whole:.5f} |", flush=True)


if __name__ == "__main__":
    main()
