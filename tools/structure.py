#!/usr/bin/env python3
"""Figures of how the code is built: circles, lengths, widths, local closures, the crates that a plugin builds.

    tools/structure.py [ROOT]
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
CRATES = [c for c in ("core", "engine", "plugins", "cli") if (ROOT / f"minitron-{c}").is_dir()]


def code(path):
    """Lines before the unit tests, with comments left out."""
    text = path.read_text().split("\n#[cfg(test)]")[0]
    return [line.split("//")[0] for line in text.split("\n")]


def circles(edges):
    """Places that lead back to themselves."""
    found = set()
    for begin in edges:
        seen, waiting = set(), list(edges[begin])
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                waiting.extend(edges.get(place, ()))
        if begin in seen:
            found.add(begin)
    return found


def rooms(src):
    edges = {}
    room = lambda path: path.relative_to(src).parts[0].removesuffix(".rs")
    names = {room(path) for path in src.rglob("*.rs")}
    for path in src.rglob("*.rs"):
        for line in code(path):
            for seen in re.findall(r"(?<!\$)\bcrate::(\w+)", line):
                if seen in names and seen != room(path):
                    edges.setdefault(room(path), set()).add(seen)
    return circles(edges)


def siblings(src):
    edges = {}
    for path in src.rglob("*.rs"):
        folder = path.parent
        for line in code(path) if path.name != "mod.rs" else []:
            for ups, name in re.findall(r"\b((?:super::)+)\{?(\w+)", line):
                above = folder
                for _ in range(ups.count("super") - 1):
                    above = above.parent
                other = above / f"{name}.rs"
                if other.is_file() and other != path:
                    edges.setdefault(path, set()).add(other)
    return circles(edges)


def lengths(lines):
    for start, line in enumerate(lines):
        if re.match(r"\s*(pub(\([a-z]+\))? )?(const |unsafe |async )*fn ", line) and not line.rstrip().endswith(";"):
            close = " " * (len(line) - len(line.lstrip())) + "}"
            if "}" in line:
                yield 1
            elif close in lines[start:]:
                yield lines[start:].index(close) + 1


def declared_twice(all_lines):
    """Names of types and traits that more than one place declares."""
    declared = [
        name
        for lines in all_lines
        for name in re.findall(r"^pub(?:\([a-z]+\))? (?:struct|enum|trait|type) (\w+)", "\n".join(lines), re.M)
    ]
    return len({name for name in declared if declared.count(name) > 1})


def repeated_runs(all_lines, length=70):
    """Runs of so many tokens or more that stand in two places; imports and closing commas do not count."""
    first, found = {}, 0
    for file_idx, lines in enumerate(all_lines):
        text = re.sub(r"^(?:pub )?use [^;]*;", "", "\n".join(lines), flags=re.M)
        tokens = re.findall(r"\w+|[^\w\s,]", text)
        last = None
        for at in range(len(tokens) - length + 1):
            place = first.setdefault(tuple(tokens[at : at + length]), (file_idx, at))
            repeats = place != (file_idx, at) and not (place[0] == file_idx and at - place[1] < length)
            # The next token of the same run is no other run.
            found += repeats and last != (place[0], place[1] - 1)
            last = place if repeats else None
    return found


def plugin_crates():
    args = ["cargo", "tree", "-p", "minitron-examples", "-e", "normal,build", "--prefix", "none", "--locked"]
    tree = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return len({line.removesuffix(" (*)") for line in tree.splitlines()})


def main():
    sources = [path for c in CRATES for path in (ROOT / f"minitron-{c}/src").rglob("*.rs")]
    all_lines = [code(path) for path in sources]
    n_lines = sum(len(lines) for lines in all_lines)
    closures = sum(len(re.findall(r"\blet (?:mut )?\w+(?:: [^=]+)? = (?:move )?\|", "\n".join(lines))) for lines in all_lines)
    found = sorted(length for lines in all_lines for length in lengths(lines))
    srcs = [ROOT / f"minitron-{c}/src" for c in CRATES]
    print("rooms in circles:", sum(len(rooms(src)) for src in srcs))
    print("files in circles:", sum(len(siblings(src)) for src in srcs))
    print("crates that a plugin builds:", plugin_crates())
    print("lines of code:", n_lines)
    print("local closures in 1000 lines:", round(1000 * closures / n_lines, 1))
    print("names declared twice:", declared_twice(all_lines))
    print("runs of 70 tokens in two places:", repeated_runs(all_lines))
    print("lines over 100 columns:", sum(len(line) > 100 for path in sources for line in path.read_text().split("\n")))
    print("lines of a function, median and ninth tenth:", found[len(found) // 2], found[len(found) * 9 // 10])
    for name in ("README.md", "ARCHITECTURE.md"):
        print(f"words of {name}:", len((ROOT / name).read_text().split()))


main()
