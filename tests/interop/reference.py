"""The outputs of a model folder according to `transformers`, on the CPU in f32.

    reference.py logits MODEL_DIR IDS.safetensors OUT.safetensors [MODEL_DIR IDS OUT]...

IDS holds `input_ids` [B, T] i64, and `attention_mask` where some of them are padding. OUT gets `logits`, or `last_hidden_state` where
the folder's class has no head. With `n_new` [1] in IDS, OUT gets `continued` instead: what `generate` adds greedily to the first row.
Where IDS holds the passes of a training step instead (`ids.0`, `labels.0`, `ids.1`, ...), OUT gets the gradient of each parameter, and `loss`.
Fails when the folder does not load in full: a key that is missing, unexpected, or of another shape.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# Buffers that older versions saved; models make them anew.
BUFFERS = ("attn.bias", "attn.masked_bias", "rotary_emb.inv_freq", "embeddings.position_ids")


class NotWhole(Exception):
    """The folder and the class it names do not fit."""


def names(model_dir):
    """Every tensor name in the folder."""
    index = Path(model_dir) / "model.safetensors.index.json"
    if index.exists():
        return set(json.loads(index.read_text())["weight_map"])
    with safe_open(Path(model_dir) / "model.safetensors", "pt") as file:
        return set(file.keys())


def class_of(config, held):
    """The class that has a place for all tensors held, and its extra arguments."""
    if not config.architectures:
        raise NotWhole("config.json: expected `architectures` to name a class, got nothing")
    name = config.architectures[0]
    if config.model_type == "bert" and "cls.seq_relationship.weight" in held:
        name = "BertForPreTraining"
    found = getattr(transformers, name, None)
    if found is None:
        raise NotWhole(f"config.json: `architectures` names {name}, which transformers does not have")
    has_pooler = any(key.endswith("pooler.dense.weight") for key in held)
    return found, {"add_pooling_layer": False} if name == "BertModel" and not has_pooler else {}


def load(model_dir, attention="eager"):
    """The model in evaluation mode, or NotWhole."""
    config = transformers.AutoConfig.from_pretrained(model_dir, local_files_only=True)
    found, extra = class_of(config, names(model_dir))
    model, info = found.from_pretrained(
        model_dir,
        dtype=torch.float32,
        attn_implementation=attention,
        local_files_only=True,
        output_loading_info=True,
        **extra,
    )
    # Every list counts, whatever a later version calls it.
    faults = {what: sorted(map(str, keys)) for what, keys in info.items() if keys}
    faults["unexpected_keys"] = [k for k in faults.get("unexpected_keys", []) if not k.endswith(BUFFERS)]
    faults = {what: keys for what, keys in faults.items() if keys}
    if faults:
        raise NotWhole(f"{model_dir}: {found.__name__} does not load it in full: {faults}")
    return model.eval()


def uncached(model):
    """What a forward pass is told: the cache of some hybrids wants a layer of attention, which a student may lack."""
    return {"use_cache": False} if model.can_generate() else {}


@torch.no_grad()
def outputs(model, input_ids, attention_mask=None, n_new=None):
    """`logits` [B, T, V], or `last_hidden_state` [B, T, E]."""
    if n_new is not None:
        # The model's own generation config decides where it ends; what would be drawn or filled up with is set aside.
        prompt = input_ids[:1]
        found = model.generate(prompt, max_new_tokens=int(n_new[0]), do_sample=False, pad_token_id=0)
        return {"continued": found[0, prompt.shape[1] :].contiguous()}
    result = model(input_ids=input_ids, attention_mask=attention_mask, **uncached(model))
    for key in ("logits", "prediction_logits"):
        if getattr(result, key, None) is not None:
            return {"logits": result[key].float().contiguous()}
    return {"last_hidden_state": result.last_hidden_state.float().contiguous()}


def gradients(model, tensors):
    """Of a step of several passes, whose losses are divided by the number of predictions in all of them."""
    passes = [(tensors[f"ids.{i}"], tensors[f"labels.{i}"]) for i in range(len(tensors) // 2)]
    n_predictions = sum(int((labels[:, 1:] != -100).sum()) for _, labels in passes)
    model.zero_grad()
    total = 0.0
    for ids, labels in passes:
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=n_predictions, **uncached(model)).loss
        loss.backward()
        total += loss.item()
    found = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor([total]), **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["logits"])
    parser.add_argument("jobs", nargs="+", metavar="MODEL_DIR IDS OUT", help="one or more triples")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    args = parser.parse_args()
    if len(args.jobs) % 3:
        parser.error(f"expected MODEL_DIR IDS OUT, once or more, got {len(args.jobs)} words")
    for model_dir, ids, out in zip(*[iter(args.jobs)] * 3):
        try:
            model = load(model_dir, args.attention)
        except NotWhole as error:
            sys.exit(f"reference: {error}")
        tensors = load_file(ids)
        save_file(gradients(model, tensors) if "ids.0" in tensors else outputs(model, **tensors), out)


if __name__ == "__main__":
    main()
