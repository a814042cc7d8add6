"""Dropped experts merged into kept ones, from what PyTorch computes, against the folder of a student.

    experts.py TEACHER_DIR IDS.safetensors STUDENT_DIR all|routed mean|kept

Fails where a weight of an expert or a router of STUDENT_DIR is another one than `expert_merge` with these options says, or where none
was merged.
"""

import json
import re
import sys
from pathlib import Path

import torch
from reference import load
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

LAYOUTS = [
    re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight"),
    re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w1|w3|w2)\.weight"),
]
STACKED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)(_bias)?")
ROUTER = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.(?:gate|router)\.(weight|bias)")
KINDS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


def experts(folder):
    """Of each layer and expert: [F, ..] for each tensor whose first side is its neurons, and its output bias."""
    found = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        tensor = tensor.double()
        for layout in LAYOUTS:
            if match := layout.fullmatch(name):
                layer, expert, kind = int(match[1]), int(match[2]), KINDS[match[3]]
                own = found.setdefault(layer, {}).setdefault(expert, {})
                own[kind] = tensor.T if kind == "down" else tensor
        if match := STACKED.fullmatch(name):
            for expert, rows in enumerate(tensor):
                own = found.setdefault(int(match[1]), {}).setdefault(expert, {})
                if match[2] == "down_proj":
                    own["out" if match[3] else "down"] = rows
                elif match[3]:
                    own["gate_bias"], own["up_bias"] = rows[::2, None], rows[1::2, None]
                else:
                    own["gate"], own["up"] = rows[:, ::2].T, rows[:, 1::2].T
    return found


def routers(folder):
    """Of each layer, the router's tensors."""
    found = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        if match := ROUTER.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor.double()
    return found


def output(expert, x, config):
    """What an expert makes of tokens [N, E]."""
    gate, up = x @ expert["gate"].T, x @ expert["up"].T
    if "out" not in expert:
        return (torch.nn.functional.silu(gate) * up) @ expert["down"]
    limit = config.swiglu_limit
    gate = (gate + expert["gate_bias"].T).clamp(max=limit)
    up = (up + expert["up_bias"].T).clamp(-limit, limit)
    return (gate * torch.sigmoid(1.702 * gate) * (up + 1)) @ expert["down"] + expert["out"]


def observed(model, ids):
    """Of each layer with experts, its input [N, E] and where tokens go [N, R]."""
    seen = {}

    def look(layer, block):
        router = getattr(block, "gate", None) or block.router

        def before(_, inputs):
            seen[layer] = [inputs[0].flatten(0, -2).double()]

        def after(_, __, outputs):
            seen[layer].append(next(part for part in outputs if not part.is_floating_point()))

        block.register_forward_pre_hook(before)
        router.register_forward_hook(after)

    for layer, module in enumerate(model.model.layers):
        if hasattr(module.mlp, "experts"):
            look(layer, module.mlp)
    with torch.no_grad():
        model(ids)
    return seen


def order(kept, dropped):
    """The neuron of `dropped` for each of `kept`."""
    likeness = sum(kept[name] @ dropped[name].T for name in kept if name != "out")
    return torch.from_numpy(linear_sum_assignment(likeness.numpy(), maximize=True)[1])


def shares(teacher, x, goes, kept, of, config):
    """For each kept expert, itself and those that are merged into it with their weights."""
    x_of = [x if of == "all" else x[(goes == expert).any(-1)] for expert in range(len(teacher))]
    means = torch.stack([output(teacher[expert], x, config).sum(0) for expert, x in enumerate(x_of)])
    means = means / means.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    n_tokens = [int((goes == expert).sum()) for expert in range(len(teacher))]
    found = {expert: {expert: n_tokens[expert]} for expert in kept}
    for dropped in sorted(set(teacher) - set(kept)):
        if n_tokens[dropped]:
            found[max(kept, key=lambda expert: means[expert] @ means[dropped])][dropped] = n_tokens[dropped]
    for expert, group in found.items():
        total = sum(group.values())
        found[expert] = {other: n / total for other, n in group.items()} if len(group) > 1 else {expert: 1.0}
    return found


def merged(teacher, expert, group, neurons):
    """An expert as the student should have it."""
    student = {}
    for name in teacher[expert]:
        mean = 0
        for other, share in group.items():
            theirs = teacher[other][name]
            aligned = theirs if name == "out" else theirs[order(teacher[expert], teacher[other])]
            mean = mean + share * aligned
        student[name] = mean if name == "out" else mean[neurons]
    return student


def assert_alike(found, wanted, what):
    assert found.shape == wanted.shape, f"{what}: {found.shape}, not {wanted.shape}"
    apart = (found - wanted).abs().max() / wanted.abs().max()
    assert apart < 1e-5, f"{what}: {apart:e} apart"


def main(teacher_dir, ids, student_dir, of, row):
    model = load(teacher_dir)
    plan = json.loads((Path(student_dir) / "plan.json").read_text())["kept"]
    teacher, student = experts(teacher_dir), experts(student_dir)
    before, after = routers(teacher_dir), routers(student_dir)
    seen, n_merged = observed(model, load_file(ids)["input_ids"]), 0
    assert seen.keys() == teacher.keys() == student.keys() == before.keys() == after.keys()
    for layer, (x, goes) in seen.items():
        kept = plan[f"experts.{layer}"]
        groups = shares(teacher[layer], x, goes, kept, of, model.config)
        n_merged += sum(len(group) > 1 for group in groups.values())
        assert len(student[layer]) == len(kept)
        for place, (expert, group) in enumerate(groups.items()):
            neurons = plan.get(f"expert_mlp.{layer}.{expert}", range(len(teacher[layer][expert]["gate"])))
            for name, wanted in merged(teacher[layer], expert, group, list(neurons)).items():
                assert_alike(student[layer][place][name], wanted, f"layer {layer}, expert {expert}, {name}")
            for name, rows in before[layer].items():
                wanted = sum(share * rows[other] for other, share in group.items()) if row == "mean" else rows[expert]
                assert_alike(after[layer][name][place], wanted, f"layer {layer}, router {expert}, {name}")
    assert n_merged, "no expert was merged"


if __name__ == "__main__":
    main(*sys.argv[1:])
