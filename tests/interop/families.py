"""What `transformers` makes of tiny models of each family, on the CPU in f32: one process, asked line by line.

    families.py serve

Each line read is a JSON object with `do`, each line written is the answer, or `{"error": ...}`:

    variants                             every family and variant, and whether it belongs to the slow tests alone
    make       family variant dir        a random model in DIR/model, DIR/reference.safetensors, and gradients in DIR/gradients
    effects    family variant            how much each option changes the outputs
    reload     model ids out ...         OUT gets what the folder says of IDS; the answer is what `save_pretrained` would write
    count      class config              parameters on the meta device, in all and without tables of embeddings and head

`families.py check` shows by itself that each option of each variant changes the outputs.
"""

import copy
import io
import json
import logging
import sys
import tempfile
import zlib
from contextlib import redirect_stdout
from pathlib import Path

import torch
import transformers
from reference import load, uncached
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from variants import GENERATE, LONG, SHORT, variants

TOWERS = ("model.vision_tower.", "model.multi_modal_projector.")
# An option that changes less than this is not at work.
AT_WORK = 5e-3
# Greedy tokens are compared where the best is so much better than the next.
MARGIN = 0.02


def configured(class_name, config):
    """A config of the class, of a copy: the classes write into what they are given."""
    return getattr(transformers, class_name).config_class(**copy.deepcopy(config))


def randomise(model, seed):
    """Every parameter away from what it starts with, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    scaled = any(hasattr(module, "embed_scale") for module in model.modules())
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in tables:
                parameter.copy_(noise * (0.15 if scaled else 0.7))
            elif parameter.dim() > 1:
                parameter.copy_(noise * 1.3 / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(parameter.mean().round() + 0.3 * noise)
        for name, buffer in model.named_buffers():
            # Trained beside the gradients.
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def merge(into, what):
    """JSON objects, merged."""
    for key, value in what.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and key.endswith("_config"):
            merge(into[key], value)
        else:
            into[key] = value


def write(model, what, out):
    """The folder; its config and names as older folders have them, where the variant says so."""
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    path = out / "config.json"
    config = json.loads(path.read_text())
    for key in what.get("without", []):
        *outer, last = key.split(".")
        inner = config
        for name in outer:
            inner = inner[name]
        inner.pop(last, None)
    merge(config, what.get("json", {}))
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    if "rename" in what:
        tensors = load_file(out / "model.safetensors")
        for old, new in what["rename"].items():
            tensors = {new + key.removeprefix(old) if key.startswith(old) else key: t for key, t in tensors.items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def inputs(model, seed):
    """Ids of unequal lengths with their mask, and shorter ones; none of them means anything special."""
    text = model.config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, text.vocab_size - 8, (3, LONG), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate([LONG, 23, 9]):
        mask[row, length:] = 0
    if text.model_type == "roberta":
        # There positions follow from the ids.
        ids = ids.where(mask.bool(), text.pad_token_id)
    short = torch.randint(5, text.vocab_size - 8, (2, SHORT), generator=generator)
    return {"ids": ids, "mask": mask, "short_ids": short}


def within(given, config):
    """The same inside the table of positions; what goes beyond it apart."""
    n_positions = config.get_text_config().max_position_embeddings
    if n_positions >= LONG:
        return given
    cut = {name: given[name][:, :n_positions].contiguous() for name in ["ids", "mask"]}
    return cut | {"short_ids": given["short_ids"], "beyond_ids": given["ids"][:1].contiguous()}


def said(model, ids, mask=None):
    """Logits, or the last hidden states of a model without a head."""
    result = model(input_ids=ids, attention_mask=mask, **uncached(model))
    logits = getattr(result, "logits", None)
    return (result.last_hidden_state if logits is None else logits).float()


def gradients(model, ids, mask):
    """Of the mean cross entropy of next tokens: put in the place of the parameters."""
    logits = said(model, ids, mask)[:, :-1]
    seen = mask[:, 1:].bool()
    loss = torch.nn.functional.cross_entropy(logits[seen], ids[:, 1:][seen])
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return loss.detach()


@torch.no_grad()
def generated(model, seed, lengths, cached):
    """A prompt whose continuation is never close, what is added to it, and the logits that each token was chosen by."""
    n_prompt, n_new = lengths
    generator = torch.Generator().manual_seed(seed)
    for _ in range(100):
        prompt = torch.randint(5, model.config.get_text_config().vocab_size - 8, (1, n_prompt), generator=generator)
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n_new,
            min_new_tokens=n_new,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logits = torch.cat(found.logits).float()
        best = logits.topk(2).values
        if (best[:, 0] - best[:, 1]).min() > MARGIN:
            continued = found.sequences[0, n_prompt:].contiguous()
            # Without a cache, and as long as it was when the token was chosen: some positions turn with the length.
            whole = [said(model, found.sequences[:, : n_prompt + i])[0, -1] for i in range(n_new)]
            cached = (torch.stack(whole) - logits).abs().max().item()
            return {"prompt": prompt[0].contiguous(), "continued": continued, "step_logits": logits}, cached
    raise ValueError("no prompt whose continuation is never close")


def make(family, variant, dir):
    """The folder, what the model says, and its gradients."""
    class_name, what = next((c, w) for f, v, c, w in variants() if (f, v) == (family, variant))
    dir, seed = Path(dir), zlib.crc32(f"{family} {variant}".encode())
    model = randomise(getattr(transformers, class_name)(configured(class_name, what["config"])), seed)
    write(model, what, dir / "model")
    # Reloaded: the folder is what both sides read.
    model = load(dir / "model")
    found = within(inputs(model, seed), model.config)
    answer = {"decoder": bool(model.can_generate()), "class": class_name}
    with torch.no_grad():
        found["said"] = said(model, found["ids"], found["mask"])
        found["short_said"] = said(model, found["short_ids"])
        if "beyond_ids" in found:
            found["beyond_said"] = said(model, found["beyond_ids"])
    if answer["decoder"]:
        more, answer["cached"] = generated(model, seed, what.get("generate", GENERATE), what.get("cached", True))
        found |= more
        found["loss"] = gradients(model, found["ids"], found["mask"]).reshape(1)
        model.save_pretrained(dir / "gradients")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, dir / "reference.safetensors")
    return answer | {"crosses": what.get("crosses", False)}


@torch.no_grad()
def effects(family, variant):
    """How much each option changes the outputs of the same weights."""
    class_name, what = next((c, w) for f, v, c, w in variants() if (f, v) == (family, variant))
    found_class, seed = getattr(transformers, class_name), zlib.crc32(f"{family} {variant}".encode())
    on = configured(class_name, what["config"])
    on._attn_implementation = "eager"
    model = randomise(found_class(on), seed)
    given = inputs(model, seed)
    expected = said(model, given["ids"], given["mask"])
    seen = given["mask"].bool()
    found = {}
    for option, other in what.get("off", {}).items():
        off = configured(class_name, what["config"] | other)
        off._attn_implementation = "eager"
        without = found_class(off).eval()
        held = without.state_dict()
        without.load_state_dict({k: v for k, v in model.state_dict().items() if k in held and v.shape == held[k].shape})
        difference = (said(without, given["ids"], given["mask"]) - expected)[seen].abs().max().item()
        found[option] = difference / max(1.0, expected[seen].abs().max().item())
    return found


def written(model):
    """Names and shapes that `save_pretrained` gives the model."""
    with tempfile.TemporaryDirectory() as dir:
        model.save_pretrained(dir)
        with safe_open(Path(dir) / "model.safetensors", "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}


@torch.no_grad()
def reload(model, ids, out, family, variant):
    """What a folder says, and how `save_pretrained` would write it."""
    what = next(w for f, v, _, w in variants() if (f, v) == (family, variant))
    loaded, given = load(model), load_file(ids)
    found = {"said": said(loaded, given["ids"], given["mask"]), "short_said": said(loaded, given["short_ids"])}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
    shapes = written(loaded)
    for old, new in what.get("rename", {}).items():
        shapes = {new + k.removeprefix(old) if k.startswith(old) else k: shape for k, shape in shapes.items()}
    return {"written": shapes}


def count(config):
    """Parameters of the class that a config names, without weights."""
    config = copy.deepcopy(config)
    kind = getattr(transformers, config.pop("architectures")[0])
    with torch.device("meta"):
        model = kind(kind.config_class(**config))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        tables |= {id(head.weight), id(head.bias)}
    sizes = {id(p): (name, p.numel()) for name, p in model.named_parameters()}
    # What routers are corrected by is a buffer, which files hold as they hold weights.
    stored = model.state_dict()
    sizes |= {id(b): (name, b.numel()) for name, b in model.named_buffers() if name in stored}
    # Of a model with a tower, the language model is what can be pruned.
    text = {i: n for i, (name, n) in sizes.items() if not name.startswith(TOWERS)}
    # Of a layer's experts a token goes through a few.
    experts = sum(n for name, n in sizes.values() if ".experts." in name)
    settings = model.config.get_text_config()
    counts = (getattr(settings, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    n_experts = next(filter(None, counts), 1)
    n_idle = n_experts - (getattr(settings, "num_experts_per_tok", 1) if experts else n_experts)
    return {
        "whole": sum(n for _, n in sizes.values()),
        "total": sum(text.values()),
        "active": sum(text.values()) - experts // n_experts * n_idle,
        "without_embeddings": sum(n for i, n in text.items() if i not in tables),
    }


def every():
    """The list of variants."""
    listed = [{"family": f, "variant": v, "class": c, "slow": what.get("slow", False)} for f, v, c, what in variants()]
    return {"variants": listed}


def serve():
    """One answer a line, until the lines end."""
    known = {"variants": every, "make": make, "effects": effects, "reload": reload, "count": count}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            # What the libraries print is no answer.
            with redirect_stdout(io.StringIO()):
                answer = known[asked.pop("do")](**asked)
        except Exception as error:  # The one who asked says which question it was.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def check(wanted):
    """Makes every variant and shows what each option does."""
    failed = 0
    for family, variant, _, what in variants():
        if wanted and family not in wanted:
            continue
        with tempfile.TemporaryDirectory() as dir:
            try:
                answer = make(family, variant, dir) | {"off": effects(family, variant)}
                with safe_open(Path(dir) / "reference.safetensors", "pt") as file:
                    answer["largest"] = round(file.get_tensor("said").abs().max().item(), 2)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        idle = [option for option, effect in answer.get("off", {}).items() if not effect > AT_WORK]
        bad = "error" in answer or idle or answer.get("cached", 0.0) > 1e-4
        failed += bool(bad)
        print("FAILED" if bad else "ok", family, variant, json.dumps(answer), f"idle: {idle}" if idle else "", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    check(sys.argv[2:]) if sys.argv[1:2] == ["check"] else serve()
