#!/usr/bin/env python3
"""Runs figures of RESULTS.md again and says which moved: `make results`.

    tools/results.py [WORD ...]    those alone whose claim holds one of the words

docs/results/figures.json has the commands, and for each figure a file of the run, its key, and what is written down. Losses
differ from one processor to another in their third digit: a figure stands within 1 % of what is written.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STANDS = 0.01


def moved(out, figures):
    """Prints each figure beside what is written; true where one is not there or has another value."""
    any_moved = False
    for name, file, key, written in figures:
        try:
            found = json.loads((out / file).read_text())[key]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            print(f"  {name}: not there ({error})")
            any_moved = True
            continue
        stands = abs(found - written) <= STANDS * abs(written)
        any_moved |= not stands
        print(f"  {name}: {found:.4f}, written {written}: {'stands' if stands else 'MOVED'}")
    return any_moved


def main(words):
    entries = json.loads((ROOT / "docs/results/figures.json").read_text())
    chosen = [entry for entry in entries if not words or any(word in entry["claim"] for word in words)]
    if not chosen:
        sys.exit(f"no claim holds one of {words}; known: {', '.join(entry['claim'] for entry in entries)}")
    bad = []
    for idx, entry in enumerate(chosen):
        needs = entry.get("needs")
        if needs and not (ROOT / needs).exists():
            print(f"{entry['claim']}: not run, {needs} is absent")
            continue
        out = ROOT / "out/results" / str(entries.index(entry))
        print(entry["claim"], flush=True)
        begin = time.monotonic()
        command = entry["command"].format(out=shlex.quote(str(out)))
        log = out.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as lines:
            code = subprocess.run(command, shell=True, cwd=ROOT, stdout=lines, stderr=lines).returncode
        print(f"  {time.monotonic() - begin:.0f} s: {command}")
        if code != 0:
            print(f"  ended with {code}: {log}")
            bad.append(entry["claim"])
        elif moved(out, entry["figures"]):
            bad.append(entry["claim"])
    if bad:
        sys.exit("not as written: " + "; ".join(bad))


main(sys.argv[1:])
