"""Dropped layers merged into kept ones and refitted, from what PyTorch computes, against the folder of a student.

    layers.py TEACHER_DIR IDS.safetensors STUDENT_DIR RIDGE

For a Llama pruned in depth with `layer_merge` and `least_squares:ridge=RIDGE`. Fails where plan.json names other units than those that add
most, where a projection of a layer is another one than the closed form, or where none was taken.
"""

import json
import sys
from pathlib import Path

import torch
from reference import load
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu

# The ridge where batches are too few to choose one.
USUAL = 1e-3


class Layer:
    """One layer's weights in f64, heads apart."""

    def __init__(self, layer, config):
        attention, mlp = layer.self_attn, layer.mlp
        self.width = attention.head_dim
        self.eps = config.rms_norm_eps
        self.gains = [layer.input_layernorm.weight.double(), layer.post_attention_layernorm.weight.double()]
        self.biases = {}
        for of, names in (attention, "qkvo"), (mlp, ("gate", "up", "down")):
            for name in names:
                projection = getattr(of, f"{name}_proj")
                setattr(self, name, projection.weight.double())
                bias = projection.bias
                self.biases[name] = projection.weight.new_zeros(len(projection.weight)).double() if bias is None else bias.double()

    def read(self, x, part):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gains[part]

    def given(self, x, name):
        return x @ getattr(self, name).T + self.biases[name]

    def inner(self, x, part, turn):
        """What the part's writer reads of what the part reads [B, T, E]."""
        if part == 1:
            return silu(self.given(x, "gate")) * self.given(x, "up")
        heads = [self.given(x, name).unflatten(-1, (-1, self.width)).transpose(1, 2) for name in "qkv"]
        q, k = turn(heads[0]), turn(heads[1])
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), heads[2].repeat_interleave(shared, 1)
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def writes(self, part):
        return "down" if part == 1 else "o"

    def writer(self, part):
        return getattr(self, self.writes(part))


def rows(x):
    return x.reshape(-1, x.shape[-1])


def fitted(x, r, ridge, shifts):
    """Δ [E, C] and s [E] with x·Δᵀ + s ≈ r; s is 0 where there are no biases."""
    x, r = rows(x), rows(r)
    x_mean, r_mean = (it.mean(0) if shifts else torch.zeros_like(it[0]) for it in (x, r))
    x, r = x - x_mean, r - r_mean
    gram = x.T @ x
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    delta = torch.linalg.solve(gram, x.T @ r).T
    return delta, r_mean - delta @ x_mean


def added(inner, writer, width):
    """Mean over tokens of ‖W_u·x_u‖² for units of so many channels."""
    units = rows(inner).unflatten(-1, (-1, width)).transpose(0, 1)
    return (units @ writer.T.unflatten(0, (-1, width))).pow(2).sum(-1).mean(-1)


def chosen(own, others):
    """By layer, (places, units) that are taken: own units go from the worst on."""
    # Of equals the layer's own, then the earlier ones.
    ranked = [(-worth, 0, None, place) for place, worth in enumerate(own.tolist())]
    ranked += [(-worth, 1, layer, unit) for layer, all in others.items() for unit, worth in enumerate(all.tolist())]
    best = sorted(ranked, key=lambda unit: unit[0])[: len(own)]
    free = [place for place in range(len(own)) if (None, place) not in [unit[2:] for unit in best]]
    taken = {}
    for layer in others:
        units = sorted(unit for _, _, of, unit in best if of == layer)
        if units:
            taken[layer], free = (free[: len(units)], units), free[len(units) :]
    return taken


def channels(units, width):
    return [unit * width + channel for unit in units for channel in range(width)]


def main(teacher_dir, ids, student_dir, ridge):
    ridge = float(ridge)
    model = load(teacher_dir)
    config, ids = model.config, load_file(ids)["input_ids"]
    plan = json.loads((Path(student_dir) / "plan.json").read_text())
    student = {name: tensor.double() for name, tensor in load_file(Path(student_dir) / "model.safetensors").items()}
    kept = plan["kept"]["depth"] + [config.num_hidden_layers]
    with torch.no_grad():
        layers = [Layer(layer, config) for layer in model.model.layers]
        shifts = config.attention_bias
        x = model.model.embed_tokens(ids).double()
        cos, sin = (it[:, None].double() for it in model.model.rotary_emb(x.float(), torch.arange(ids.shape[1])[None]))

        def turn(heads):
            first, second = heads.chunk(2, -1)
            return heads * cos + torch.cat([-second, first], -1) * sin

        # The teacher's streams before and after each part.
        streams, stream = [], x
        for layer in layers:
            before = [stream]
            for part in range(2):
                stream = stream + layer.given(layer.inner(layer.read(stream, part), part, turn), layer.writes(part))
                before.append(stream)
            streams.append(before)

        n_taken, x = 0, streams[kept[0]][0]
        for place, first in enumerate(kept[:-1]):
            own, group = layers[first], range(first, kept[place + 1])
            prefix = f"model.layers.{place}."
            gained = lost = 0
            for part in range(2):
                aimed = streams[first][0] + sum(streams[l][part] - streams[l][0] for l in group)
                wanted = streams[first][0] + sum(streams[l][part + 1] - streams[l][0] for l in group)
                width = 1 if part else own.width
                worth = {}
                for l in group:
                    read = layers[l].read(streams[l][part], part)
                    worth[l] = added(layers[l].inner(read, part, turn), layers[l].writer(part), width)
                    if l == first:
                        unseen = worth[l].sum()
                    # What the first part of a kept layer reads is its own.
                    if l != first or part:
                        teller = own.read(aimed, part)
                        delta, shift = fitted(teller, read, USUAL, shifts)
                        left = rows(read) - rows(teller) @ delta.T - shift
                        worth[l] *= max(0, 1 - 2 * left.pow(2).sum() / read.pow(2).sum())
                shared = 1 if part else len(own.q) // len(own.k)
                worth = {l: it.unflatten(0, (-1, shared)).sum(-1) for l, it in worth.items()}
                of_own = worth.pop(first)
                taken = chosen(of_own, worth)
                all_worth = torch.cat([of_own, *worth.values()])
                gained += all_worth.sort(descending=True).values[: len(of_own)].sum() - of_own.sum()
                lost += unseen - of_own.sum()
                found = {
                    it["from"]: (it["units"][kind]["places"], it["units"][kind]["units"])
                    for it in plan.get("taken", [])
                    for kind in ["mlp" if part else "kv_heads" if "kv_heads" in it["units"] else "heads"]
                    if (it["layer"], it["part"]) == (place, part)
                }
                assert found == taken, f"{prefix} part {part}: {found}, not {taken}"
                n_taken += sum(len(units) for _, units in taken.values())

                # Readers by the layer that they are of, then the writer on what they give.
                now = own.read(x, part)
                names = {"gate": 1, "up": 1} if part else {"q": own.width * shared, "k": own.width, "v": own.width}
                new = Layer.__new__(Layer)
                new.__dict__.update(own.__dict__)
                new.biases = dict(own.biases)
                writes = own.writes(part)
                writer, bias = own.writer(part).clone(), own.biases[writes].clone()
                lacks = {l: layers[l].read(streams[l][part], part) - now for l in [first, *taken]}
                refit = {l: fitted(now, lacking, ridge, shifts) for l, lacking in lacks.items()}
                for name, n_rows in names.items():
                    delta, shift = refit[first]
                    weight = getattr(own, name) + getattr(own, name) @ delta
                    shifted = own.biases[name] + getattr(own, name) @ shift
                    for l, (places, units) in taken.items():
                        theirs = getattr(layers[l], name)[channels(units, n_rows)]
                        delta, shift = refit[l]
                        weight[channels(places, n_rows)] = theirs + theirs @ delta
                        shifted[channels(places, n_rows)] = layers[l].biases[name][channels(units, n_rows)] + theirs @ shift
                    setattr(new, name, weight)
                    new.biases[name] = shifted
                for l, (places, units) in taken.items():
                    n_columns = width * shared
                    writer[:, channels(places, n_columns)] = layers[l].writer(part)[:, channels(units, n_columns)]
                    bias = bias + layers[l].biases[writes]
                inner = new.inner(now, part, turn)
                delta, shift = fitted(inner, wanted - x - inner @ writer.T - bias, ridge, shifts)
                writer, bias = writer + delta, bias + shift
                x = x + inner @ writer.T + bias
                setattr(new, writes, writer)
                new.biases[writes] = bias
                for name in [*names, writes]:
                    at = f"{prefix}{'mlp' if part else 'self_attn'}.{name}_proj"
                    assert_alike(student[f"{at}.weight"], getattr(new, name), f"{at}.weight")
                    if shifts:
                        assert_alike(student[f"{at}.bias"], new.biases[name], f"{at}.bias")
            if len(group) > 1:
                assert gained > 2 * lost, f"{prefix} gains {gained} where its own units lose {lost}"
    assert n_taken, "no unit was taken"


def assert_alike(found, wanted, what):
    assert found.shape == wanted.shape, f"{what}: {found.shape}, not {wanted.shape}"
    apart = (found - wanted).abs().max() / wanted.abs().max()
    assert apart < 2e-4, f"{what}: {apart:e} apart"


if __name__ == "__main__":
    main(*sys.argv[1:])
