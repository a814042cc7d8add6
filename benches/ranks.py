"""Several processes on this machine: beside what people run today, and under kills.

    .deps/venv/bin/python benches/ranks.py peers --peers ../shared/peers --rounds 3
    .deps/venv/bin/python benches/ranks.py memory
    .deps/venv/bin/python benches/ranks.py fits
    .deps/venv/bin/python benches/ranks.py kills --model FOLDER --text FILE --kills 100
    sudo .deps/venv/bin/python benches/ranks.py networks --model FOLDER --text FILE

`peers` distils 130M into 60M parameters with 2 ranks on Gloo over the loopback, alternating with PyTorch's DistributedDataParallel,
ZeroRedundancyOptimizer and FSDP2 (benches/peer_ranks.py): seconds of a step, the first one left out; peak memory of the larger rank;
bytes over the loopback and CPU seconds of all ranks in a step, from runs of different length. Other work on the machine counts in
the bytes and the seconds, and hardly in the CPU seconds.

`memory` distils 12 layers of 7M parameters each into as many, with 1, 2 and 4 ranks that keep all, parts of the moments, or parts of
the layers too: the largest rank's peak beside the one that was said before the first step.

`fits` asks `inspect` what a step of large pairs takes of each of 1, 8 and 64 GPUs, GiB.

`networks` puts two ranks into network namespaces of their own that a link joins, takes the link away under a distillation, and gives it
back: both end with an error in time, and the run goes on to the bytes of one whose link stayed.

`kills` runs a job (`--job distill`, `train`, `score`, `search`) under torchrun or `minitron launch` and kills a random rank at a random moment,
again and again: what it leaves must be the bytes of a run that nobody disturbed. `--job worlds` trains, and goes on with another number of ranks
(2 to 3, 4 to 2) and says how far the weights and losses are.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
BATCH, SEQ = 4, 512


def loopback_bytes():
    with open("/proc/net/dev") as table:
        line = next(line for line in table if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(entry.name))
            except (OSError, IndexError):
                pass
    return found


def peak_mib(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
    except OSError:
        return 0.0


def watched(command):
    """Output of a launcher, the largest peak of its children in MiB, and the bytes that went over the loopback."""
    peaks, before = {}, loopback_bytes()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def look():
        while process.poll() is None:
            for pid in children_of(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), peak_mib(pid))
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    out, errors = process.communicate()
    looking.join()
    if process.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{errors[-3000:]}")
    return out, max(peaks.values(), default=0.0), loopback_bytes() - before


def ours(a, mode, steps):
    out = a.work / "ours"
    text, peak, sent = watched(
        [a.minitron, "launch", "--nproc", a.ranks, "--", "distill", "--teacher", a.teacher, "--student", a.student, "--data", a.tokens]
        + ["--tokens", steps * BATCH * SEQ, "--seq-len", SEQ, "--batch-size", BATCH, "--lr", "1e-4", "--checkpoint-every", 10**9]
        + ["--out", out, "--force", "--json", "--quiet", *mode.split()]
    )
    told = json.loads(text)
    a.said_mib = told["memory"]["predicted_bytes"] / 2**20
    return BATCH * SEQ / told["tokens_per_second"], peak, sent


def theirs(a, mode, steps):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // a.ranks)))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    text, _, sent = watched(
        [*TORCHRUN, "--standalone", "--nproc-per-node", a.ranks, ROOT / "benches/peer_ranks.py", mode, a.teacher, a.student, a.tokens]
        + [BATCH, SEQ, steps]
    )
    told = json.loads(text.strip().splitlines()[-1])
    return statistics.mean(told["seconds"][1:]), max(told["peak_mib"]), sent


SIDES = {
    "ours": lambda a, steps: ours(a, "--shard none", steps),
    "DDP": lambda a, steps: theirs(a, "ddp", steps),
    "ours, --shard optimizer": lambda a, steps: ours(a, "--shard optimizer", steps),
    "ZeroRedundancyOptimizer": lambda a, steps: theirs(a, "zero1", steps),
    "ours, --shard layers": lambda a, steps: ours(a, "--shard layers", steps),
    "ours, --shard layers --recompute": lambda a, steps: ours(a, "--shard layers --recompute", steps),
    "FSDP2": lambda a, steps: theirs(a, "fsdp2", steps),
}


DEEP = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 2048, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}

SHAPES = {  # hidden, mlp, layers, heads, key/value heads: Llama 3.1 8B and 70B, the 8B at Minitron's 4B, Qwen3 32B, the 70B at half its layers
    "llama-70b": (8192, 28672, 80, 64, 8), "llama-70b, 40 layers": (8192, 28672, 40, 64, 8), "llama-8b": (4096, 14336, 32, 32, 8),
    "llama-4b": (3072, 9216, 32, 32, 8), "qwen-32b": (5120, 25600, 64, 64, 8), "qwen-16b": (5120, 25600, 32, 64, 8),
}
PAIRS = [("llama-8b", "llama-4b"), ("qwen-32b", "qwen-16b"), ("llama-70b", "llama-8b"), ("llama-70b", "llama-70b, 40 layers")]


def fits(a):
    a.work = a.work.resolve()
    for name, (hidden, mlp, layers, heads, kv_heads) in SHAPES.items():
        (a.work / name).mkdir(parents=True, exist_ok=True)
        shape = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": 128}
        shape |= {"num_key_value_heads": kv_heads, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False}
        (a.work / name / "config.json").write_text(json.dumps(DEEP | shape))
    table = []
    for teacher, student in PAIRS:
        for shard in ("none", "optimizer", "layers"):
            row = {"teacher": teacher, "student": student, "shard": shard}
            for ranks in (1, 8, 64):
                words = ["inspect", a.work / student, "--teacher", a.work / teacher, "--ranks", ranks, "--shard", shard, "--gpu", "--recompute"]
                words += ["--seq-len", 4096, "--batch-size", ranks, "--json", "--quiet"]
                told = subprocess.run([str(word) for word in [a.minitron, *words]], check=True, stdout=subprocess.PIPE, text=True).stdout
                row[ranks] = round(json.loads(told)["training"]["total_bytes"] / 2**30)
            table.append(row)
            print(row, file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


def models(a):
    a.peers, a.work = a.peers.resolve(), a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    a.teacher, a.student, a.tokens = a.work / "llama-130m", a.work / "llama-60m", a.work / "tokens-130m.npy"
    for size in ("130m", "60m"):
        if not (a.work / f"tokens-{size}.npy").exists():
            subprocess.run([sys.executable, a.peers / "make.py", a.work, size, str(32 * SEQ)], check=True, stdout=subprocess.DEVNULL)


def memory(a):
    a.work = a.work.resolve()
    (a.work / "deep").mkdir(parents=True, exist_ok=True)
    (a.work / "deep/config.json").write_text(json.dumps(DEEP))
    a.tokens, a.teacher = a.work / "tokens-2k.npy", a.work / "deep-model"
    a.student = a.teacher
    np.save(a.tokens, np.random.default_rng(0).integers(3, 2048, 32 * SEQ, dtype=np.uint16))
    fresh = ["train", "--config", a.work / "deep/config.json", "--data", a.tokens, "--tokens", "64", "--seq-len", "64", "--batch-size", "1"]
    subprocess.run([str(word) for word in [a.minitron, *fresh, "--out", a.teacher, "--force", "--quiet"]], check=True)
    table = []
    for a.ranks in (1, 2, 4):
        for mode in ("--shard none --recompute", "--shard optimizer --recompute", "--shard layers --recompute", "--shard layers"):
            if a.ranks > 1 or "none" in mode:
                _, peak, _ = ours(a, mode, 2)
                table.append({"ranks": a.ranks, "mode": mode, "said_mib": round(a.said_mib), "peak_mib": round(peak)})
                print(table[-1], file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


def measured(a, side, steps):
    """Seconds, peak, bytes and CPU seconds of a run."""
    before = os.times()
    found = SIDES[side](a, steps)
    after = os.times()
    return *found, after.children_user + after.children_system - before.children_user - before.children_system


def peers(a):
    models(a)
    sides = [side for side in SIDES if not a.sides or any(word in side for word in a.sides.split(","))]
    found = {side: [] for side in sides}
    for number in range(a.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            found[side].append(measured(a, side, a.steps))
            print(f"round {number} {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    table = []
    for side, runs in found.items():
        _, _, sent, cpu = measured(a, side, a.steps + 2)
        seconds = [run[0] for run in runs]
        table.append(
            {
                "side": side,
                "step_s": round(statistics.median(seconds), 2),
                "spread": [round(min(seconds), 2), round(max(seconds), 2)],
                "peak_mib": round(max(run[1] for run in runs)),
                "mib_sent_per_step": round((sent - runs[-1][2]) / 2 / 2**20, 1),
                "cpu_s_per_step": round((cpu - statistics.median(run[3] for run in runs)) / 2, 2),
            }
        )
    print(json.dumps({"ranks": a.ranks, "batch": BATCH, "seq_len": SEQ, "cores": os.cpu_count(), "table": table}, indent=1))


def ranks_below(pid, program):
    """The ranks that a launcher has started: its descendants that run the program."""
    found = []
    for child in children_of(pid):
        try:
            runs = Path(f"/proc/{child}/exe").resolve()
        except OSError:
            continue
        found += [child] if runs == program.resolve() else ranks_below(child, program)
    return found


def words_of(a, job, out):
    """A job that goes on where an earlier one was lost, and the file that it leaves."""
    common = ["--data", a.text, "--seq-len", "64", "--out", out, "--quiet"]
    steps = ["--tokens", a.windows_tokens, "--batch-size", "4", "--lr", "1e-3", "--checkpoint-every", "2", "--resume"]
    if job == "score":
        out = out.with_suffix(".safetensors")
        return ["score", a.model, "--data", a.text, "--seq-len", "64", "--samples", "192", "--out", out, "--force", "--quiet"], out
    if job == "search":
        grid = ["--params", "130k+-20%", "--candidates", "5", "--rungs", "2", "--eval-data", a.text, "--eval-samples", "2", "--eval-every", "8"]
        return ["search", a.model, "--scores", a.work / "scores.safetensors", *grid, *common, *steps], out / "search.json"
    if job == "train":
        return ["train", a.model, *common, *steps, *a.shard], out / "model.safetensors"
    return ["distill", "--teacher", a.model, "--student", a.model, *common, *steps, *a.shard], out / "model.safetensors"


def launched(a, words, n_ranks, restarts):
    if a.launcher == "torchrun":
        return [*TORCHRUN, "--standalone", "--no-python", "--max-restarts", restarts, "--nproc-per-node", n_ranks, a.minitron, *words]
    return [a.minitron, "launch", "--nproc", n_ranks, "--max-restarts", restarts, "--", *words]


def disturbed(a, words, seconds, n_ranks, restarts):
    """A job of which a random rank is killed after so long: whether one was, the launcher's code, and how long it took."""
    begin = time.time()
    log = open(a.work / "kills.log", "ab")
    process = subprocess.Popen([str(word) for word in launched(a, words, n_ranks, restarts)], stdout=log, stderr=log)
    killed = False
    if seconds is not None:
        time.sleep(seconds)
        alive = ranks_below(process.pid, a.minitron)
        if alive:
            os.kill(random.choice(alive), signal.SIGKILL)
            killed = True
    return killed, process.wait(), time.time() - begin


def clear(*paths):
    for path in paths:
        subprocess.run(["rm", "-rf", path], check=True)


def far(a, b):
    """The largest difference of any weight, and the largest relative one of any step's loss."""
    from safetensors.numpy import load_file

    of_a, of_b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    losses = [[json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (a, b)]
    assert len(losses[0]) == len(losses[1])
    return max(float(abs(of_a[name] - of_b[name]).max()) for name in of_a), max(abs(x - y) / abs(x) for x, y in zip(*losses))


def kills(a):
    a.work, a.minitron, a.shard = a.work.resolve(), a.minitron.resolve(), a.shard.split()
    a.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    random.seed(a.seed)
    if a.job == "search":
        words = ["score", a.model, "--data", a.text, "--seq-len", "64", "--samples", "32", "--out", a.work / "scores.safetensors"]
        subprocess.run([str(word) for word in [a.minitron, *words, "--force", "--quiet"]], check=True, stdout=subprocess.DEVNULL)
    if a.job == "worlds":
        return changed_worlds(a)
    words, calm = words_of(a, a.job, a.work / "calm")
    clear(a.work / "calm", calm)
    _, code, took = disturbed(a, words, None, a.ranks, 0)
    assert code == 0, "see kills.log"
    wanted, counts, begin = said(calm), {"kills": 0, "same": 0, "failed": 0}, time.time()
    while counts["kills"] < a.kills and time.time() - begin < a.minutes * 60:
        words, left = words_of(a, a.job, a.work / "disturbed")
        clear(a.work / "disturbed", left)
        killed, code, _ = disturbed(a, words, random.uniform(0.0, took), a.ranks, 3)
        is_same = code == 0 and said(left) == wanted
        counts["kills"] += killed
        counts["same"] += killed and is_same
        counts["failed"] += code != 0
        if not is_same:
            print(f"kill {counts['kills']}: code {code}, other bytes", file=sys.stderr, flush=True)
    print(json.dumps({"job": a.job, "launcher": a.launcher, "ranks": a.ranks, **counts, "undisturbed_s": round(took, 1)}))


def said(path):
    """What a job left: its bytes; of a search the winner's, and all candidates with their losses, without times."""
    if path.name != "search.json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    timed = ("seconds", "points_per_second", "shared_teacher", "warnings", "grid")
    rungs = [{key: value for key, value in rung.items() if "seconds" not in key} for rung in record.pop("rungs")]
    return rungs, {key: value for key, value in record.items() if key not in timed}, (path.parent / "winner/model.safetensors").read_bytes()


def changed_worlds(a):
    """A rank is lost, and another number of ranks goes on: as close to the undisturbed run as other worlds are."""
    found = []
    for before, after in ((2, 3), (4, 2)):
        words, _ = words_of(a, "train", a.work / "calm")
        clear(a.work / "calm")
        _, code, took = disturbed(a, words, None, before, 0)
        assert code == 0, "see kills.log"
        n_killed, worst, begin = 0, (0.0, 0.0), time.time()
        while n_killed < a.kills and time.time() - begin < a.minutes * 60:
            words, _ = words_of(a, "train", a.work / "disturbed")
            clear(a.work / "disturbed")
            killed, _, _ = disturbed(a, words, random.uniform(0.0, took), before, 0)
            _, code, _ = disturbed(a, words, None, after, 0)
            assert code == 0, "see kills.log"
            n_killed += killed
            worst = tuple(map(max, worst, far(a.work / "calm", a.work / "disturbed")))
        found.append({"ranks": [before, after], "kills": n_killed, "weights": worst[0], "loss": worst[1]})
    print(json.dumps(found))


def in_networks(a, out, seconds):
    """Two ranks in two namespaces; after so long the link is taken away. Their codes, last words, and how long they lasted then."""
    words = [a.minitron, "distill", "--teacher", a.model, "--student", a.model, "--data", a.text, "--tokens", a.windows_tokens * 4]
    words += ["--seq-len", "64", "--batch-size", "4", "--lr", "1e-3", "--checkpoint-every", "5", "--out", out, "--resume", "--quiet"]
    words += ["--comm-timeout", "10"]
    ranks = []
    for rank in range(2):
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29555"}
        env |= {"GLOO_SOCKET_IFNAME": f"mtron{rank}", "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", f"mtron{rank}", *map(str, words)]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    begin = time.time()
    if seconds is not None:
        metrics = out / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < seconds:
            time.sleep(0.02)
        subprocess.run(["ip", "netns", "exec", "mtron0", "ip", "link", "set", "mtron0", "down"], check=True)
        begin = time.time()
    said = [rank.communicate()[1].strip().splitlines()[-1:] for rank in ranks]
    return [rank.returncode for rank in ranks], said, time.time() - begin


def networks(a):
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    run = lambda words: subprocess.run(words.split(), check=True)
    for rank in range(2):
        subprocess.run(["ip", "netns", "del", f"mtron{rank}"], stderr=subprocess.DEVNULL)
        run(f"ip netns add mtron{rank}")
    try:
        run("ip link add mtron0 netns mtron0 type veth peer name mtron1 netns mtron1")
        for rank in range(2):
            run(f"ip -n mtron{rank} addr add 10.77.0.{rank + 1}/24 dev mtron{rank}")
            run(f"ip -n mtron{rank} link set mtron{rank} up")
            run(f"ip -n mtron{rank} link set lo up")
        calm, cut = a.work / "joined", a.work / "cut"
        subprocess.run(["rm", "-rf", calm, cut], check=True)
        codes, said, _ = in_networks(a, calm, None)
        assert codes == [0, 0], said
        codes, said, lasted = in_networks(a, cut, 8)
        assert codes == [1, 1], (codes, said)
        run("ip -n mtron0 link set mtron0 up")
        again, _, _ = in_networks(a, cut, None)
        same = (calm / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
        print(json.dumps({"codes": codes, "said": said, "ended_after_s": round(lasted, 1), "resumed": again, "same_bytes": same}, indent=1))
    finally:
        for rank in range(2):
            subprocess.run(["ip", "netns", "del", f"mtron{rank}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peers", "memory", "fits", "kills", "networks"])
    parser.add_argument("--peers", type=Path, help="folder with make.py")
    parser.add_argument("--minitron", type=Path, default=ROOT / "target/release/minitron")
    parser.add_argument("--work", type=Path, default=ROOT / "out/ranks", help="models and scratch files")
    parser.add_argument("--sides", help="of the peers, those whose name holds one of these words")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="training steps, the first of which is not timed")
    parser.add_argument("--model", type=Path, help="a small model that is distilled into itself")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows-tokens", type=int, default=5120, help="tokens of a run under kills")
    parser.add_argument("--job", choices=["distill", "train", "score", "search", "worlds"], default="distill")
    parser.add_argument("--launcher", choices=["torchrun", "minitron"], default="torchrun")
    parser.add_argument("--shard", default="", help="options of the distillation that is killed, `--shard layers`")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="most time that kills take")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    {"peers": peers, "memory": memory, "fits": fits, "kills": kills, "networks": networks}[a.what](a)


main()
