"""Writes tests/golden/fixtures: tiny random models with what PyTorch and `transformers` compute from them.

    .deps/venv/bin/python tests/golden/make.py [CASE ...]

fixtures/CASE/                  a model folder as `save_pretrained` writes it
fixtures/CASE/expected.safetensors
    input_ids                           [2, T] i64
    logits | last_hidden_state          [2, T, V | E] f32
    activation.SEQ.BATCH/mlp.L          [F] f64, heads.L [H], hidden [E], experts.L [X], expert_mlp.L.X [F]
    reap.TERM/experts.L                 [X] f64
    block_influence/depth               [layers] f64
    norm_ratio/depth                    [layers] f64
fixtures/CASE/metrics.safetensors, for some cases: scores that need weights, gradients or a model without a layer
    magnitude/DIM, taylor/DIM           [F], [H], [E], [layers] f64
    perplexity/depth                    [layers] f64
    normalised_error/depth              [layers] f64
fixtures/CASE/neuron_clone.safetensors, for the same: a cut student's neurons beside those of the model
    kept/depth, kept/mlp.L              [kept] i64
    value                               [] f64
    gradient/NAME                       of the student's parameters, as `save_pretrained` names and lays them
fixtures/losses.safetensors     losses on rows of logits and their gradients, in f64 from the f32 logits
    random|sines.student|teacher        [N, V] f32
    random|sines.labels                 [N] i64
    random|sines/PLUGIN                 [N] f64
    random|sines/PLUGIN.gradient        [N, V] f64, of the mean
fixtures/state_losses.safetensors       losses on states, in f64 from f32 states
    CASE.student|teacher                [B, T, C] f32
    CASE.seen                           [B, T] i64, 0 where a position is filling
    CASE, CASE.gradient                 [] and [B, T, C] f64
fixtures/mxfp4.safetensors      codes of 4 bits with scales, and in mxfp4_plain.safetensors the bf16 that they stand for
fixtures/adamw.safetensors      a parameter after each of five steps
"""

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file

sys.dont_write_bytecode = True  # leave the folder as it is
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
import families  # noqa: E402
import reference  # noqa: E402
from variants import FAMILIES, ONE, TWO, longrope  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
VOCAB = 96


# --- scores --------------------------------------------------------------------------------------------------------

AGGREGATIONS = {
    "mean": lambda x, axis: x.abs().mean(axis),
    "l2": lambda x, axis: x.square().sum(axis).sqrt(),
    "var": lambda x, axis: x.var(axis, correction=0),
}


# Where families keep their layers, and what in a layer reads heads, neurons, and (in attention and MLP) the residual stream.
LAYERS = ["layers", "h", "encoder.layer", "transformer.layer", "language_model.layers"]
PROJECTIONS = [
    ("self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj", "mlp.up_proj"),
    ("self_attn.o_proj", "mlp.down_proj", "self_attn.qkv_proj", "mlp.gate_up_proj"),
    ("self_attn.o_proj", "mlp.c_proj", "self_attn.q_proj", "mlp.c_fc"),
    ("attn.c_proj", "mlp.c_proj", "attn.c_attn", "mlp.c_fc"),
    ("attention.output.dense", "output.dense", "attention.self.query", "intermediate.dense"),
    ("attention.dense", "mlp.dense_4h_to_h", "attention.query_key_value", "mlp.dense_h_to_4h"),
    ("attention.out_lin", "ffn.lin2", "attention.q_lin", "ffn.lin1"),
    ("attn.Wo", "mlp.Wo", "attn.Wqkv", "mlp.Wi"),
]
# The same in hybrids, of which a layer has some; Mamba's output projection reads its heads.
PARTS = {
    "heads": ["self_attn.o_proj", "mixer.o_proj"],
    "mamba": ["mamba.out_proj", "mixer.out_proj"],
    "neurons": ["feed_forward.down_proj", "mixer.down_proj"],
}
READS = ["mamba.in_proj", "self_attn.q_proj", "feed_forward.up_proj", "mixer.in_proj", "mixer.q_proj", "mixer.up_proj"]


def resolved(module, path):
    """The module at a path of names, where it is there."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


class Sites:
    """Records, in f64, what flows through a layer: `heads`, `neurons`, `mamba`, `reads` (one a part), `before`, `after`."""

    def __init__(self, model):
        self.seen = {}
        found = (resolved(model.base_model, path) for path in LAYERS)
        self.layers = next(layers for layers in found if layers is not None)
        self.hooks = [hook for idx, layer in enumerate(self.layers) for hook in self.watch(idx, layer)]

    def watch(self, idx, layer):
        self.block(layer, (idx, "before"), (idx, "after"))
        if resolved(layer, "mlp.experts") is not None:
            yield from self.watch_experts(idx, layer)
            return
        found = ([resolved(layer, path) for path in paths] for paths in PROJECTIONS)
        usual = next((modules for modules in found if None not in modules), None)
        if usual:
            parts, reads = dict(zip(["heads", "neurons"], usual)), usual[2:]
        else:
            parts = {part: resolved(layer, path) for part, paths in PARTS.items() for path in paths if resolved(layer, path)}
            reads = [module for module in (resolved(layer, path) for path in READS) if module]
        for part, module in parts.items():
            yield self.input(module, (idx, part))
        for part, module in enumerate(reads):
            yield self.input(module, (idx, "reads", part))

    def watch_experts(self, idx, layer):
        yield self.input(layer.self_attn.o_proj, (idx, "heads"))
        yield self.input(layer.self_attn.q_proj, (idx, "reads", 0))
        yield self.input(layer.mlp, (idx, "reads", 1))
        shared = resolved(layer, "mlp.shared_expert")
        if shared is not None:
            yield self.input(shared.down_proj, (idx, "shared"))
        experts = layer.mlp.experts

        def keep(module, args, out):
            self.seen[idx, "experts"], self.seen[idx, "gates"], self.seen[idx, "outputs"] = inside(module, *args)

        yield experts.register_forward_hook(keep)

    def keep(self, key, x):
        self.seen[key] = (x[0] if isinstance(x, tuple) else x).detach().double()

    def input(self, module, key):
        return module.register_forward_pre_hook(lambda _, args: self.keep(key, args[0]))

    def output(self, module, key):
        return module.register_forward_hook(lambda _, args, out: self.keep(key, out))

    def block(self, module, before, after):
        self.input(module, before)
        self.output(module, after)


def inside(experts, x, index, weights):
    """Of every expert its neurons [N, I], of every token the experts' weights [N, X], and with the norms of their outputs, in f64."""
    x, weights = x.detach().double(), weights.detach().double()
    stacked = [getattr(experts, name).detach().double() for name in ("gate_up_proj", "down_proj")]
    biases = [getattr(experts, f"{name}_proj_bias", None) for name in ("gate_up", "down")]
    neurons, gates, outputs = [], [], []
    for expert in range(experts.num_experts):
        up, down = (w[expert] if biases[0] is not None else w[expert].T for w in stacked)
        both = x @ up
        if biases[0] is not None:
            inner = experts._apply_gate(both + biases[0][expert].detach().double())
        else:
            gate, factor = both.chunk(2, dim=-1)
            inner = experts.act_fn(gate) * factor
        output = inner @ down
        if biases[1] is not None:
            output = output + biases[1][expert].detach().double()
        chosen = (index == expert).double()
        gate = (chosen * weights).sum(-1)
        neurons.append(inner * chosen.sum(-1, keepdim=True))
        gates.append(gate)
        outputs.append(gate * output.norm(dim=-1))
    return neurons, torch.stack(gates, -1), torch.stack(outputs, -1)


def of_experts(sites, idx, batch):
    """Units of one layer's experts, and what REAP makes of them."""
    gates, outputs = sites.seen[idx, "gates"], sites.seen[idx, "outputs"]
    units = {f"experts.{idx}": [outputs.unflatten(0, batch)]}
    for expert, neurons in enumerate(sites.seen[idx, "experts"]):
        units[f"expert_mlp.{idx}.{expert}"] = [neurons.unflatten(0, batch)]
    if (idx, "shared") in sites.seen:
        units[f"shared_mlp.{idx}"] = [sites.seen[idx, "shared"].reshape(*batch, -1)]
    tokens = (gates != 0).double().sum(0)
    dim = f"experts.{idx}"
    reap = {f"reap.mean/{dim}": outputs.sum(0) / tokens.clamp(min=1), f"reap.sum/{dim}": outputs.sum(0)}
    return units, reap | {f"reap.frequency/{dim}": tokens}


def scores(sites, config):
    n_layers = len(sites.layers)
    n_mamba = getattr(config, "mamba_num_heads", None) or getattr(config, "mamba_n_heads", None)
    units, result = {}, {}
    for idx in range(n_layers):
        heads, mamba, neurons = (sites.seen.get((idx, part)) for part in ["heads", "mamba", "neurons"])
        if heads is not None:
            units[f"heads.{idx}"] = [heads.unflatten(-1, (config.num_attention_heads, -1)).norm(dim=-1)]
        if mamba is not None:
            mamba = mamba.unflatten(-1, (n_mamba, -1))
            units[f"mamba_heads.{idx}"] = [mamba.norm(dim=-1)]
            units[f"mamba_head_dim.{idx}"] = [mamba.square().mean(-2).sqrt()]
        if neurons is not None:
            units[f"mlp.{idx}"] = [neurons]
        if (idx, "experts") in sites.seen:
            of_layer, reap = of_experts(sites, idx, heads.shape[:2])
            units |= of_layer
            result |= reap
    units["hidden"] = [x for key, x in sites.seen.items() if key[1] == "reads"]
    for seq, over_tokens in AGGREGATIONS.items():
        for batch, over_samples in AGGREGATIONS.items():
            for dim, places in units.items():
                total = sum(over_samples(over_tokens(x, 1), 0) for x in places)
                result[f"activation.{seq}.{batch}/{dim}"] = total.contiguous()
    influence = [
        1 - F.cosine_similarity(sites.seen[idx, "before"], sites.seen[idx, "after"], dim=-1).mean()
        for idx in range(n_layers)
    ]
    result["block_influence/depth"] = torch.stack(influence)
    ratios = [
        (sites.seen[idx, "after"].norm(dim=-1) / sites.seen[idx, "before"].norm(dim=-1)).mean() for idx in range(n_layers)
    ]
    result["norm_ratio/depth"] = torch.stack(ratios)
    return result


# --- files ---------------------------------------------------------------------------------------------------------

RESULTS = ["expected", "metrics", "neuron_clone", "losses", "state_losses", "adamw"]
EARLIER = {path: load_file(path) for path in FIXTURES.rglob("*.safetensors") if path.stem in RESULTS}


def save(tensors, path):
    """Last digits differ from one processor to another: what is there and agrees stays, so that a change shows alone."""
    before = EARLIER.get(path, {})

    def agrees(name, new):
        old = before.get(name)
        if old is None or old.shape != new.shape or old.dtype != new.dtype:
            return False
        return old.numel() == 0 or bool((old.double() - new.double()).abs().max() <= 1e-4 * (1 + new.double().abs().max()))

    save_file({name: before[name] if agrees(name, new) else new.contiguous() for name, new in tensors.items()}, path)


# --- models --------------------------------------------------------------------------------------------------------


def randomise(model, generator, std=0.25):
    """Weights far from their initial values, so that every one of them shows in the output."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = parameter.dim() == 1 and name.endswith("weight") and "Nemotron" not in type(model).__name__
        parameter.data = 1 + 0.2 * noise if is_gain else std * noise
    model.tie_weights()
    return model.eval()


def llama(**changes):
    config = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(vocab_size=VOCAB, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config | changes))


def nemotron(**changes):
    config = dict(hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(vocab_size=VOCAB, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    return hf.NemotronForCausalLM(hf.NemotronConfig(**config | changes))


def gpt2(**changes):
    config = dict(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**config | changes))


def bert(cls=hf.BertModel, arguments={}, **changes):
    config = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(vocab_size=VOCAB, max_position_embeddings=48)
    return cls(hf.BertConfig(**config | changes), **arguments)


def gpt2_without_prefix(tensors):
    """As the first published files are: the bare model's names, and the causal masks among the weights."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    mask = torch.ones(48, 48, dtype=torch.uint8).tril().view(1, 1, 48, 48)
    return tensors | {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}


def bert_in_old_spelling(tensors):
    """As the first published files are: gamma and beta, and the positions 0, 1, 2 ... among the weights."""

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    tensors = {old(name): tensor for name, tensor in tensors.items()}
    return tensors | {"bert.embeddings.position_ids": torch.arange(48).view(1, -1)}


# What makes the variants of tests/interop/variants.py smaller still.
TINY = dict(hidden_size=16, intermediate_size=12, num_hidden_layers=2, vocab_size=28)
MAMBA = dict(mamba_head_dim=4, ssm_state_size=4, chunk_size=8)
PIXTRAL = dict(model_type="pixtral", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
PIXTRAL |= dict(head_dim=8, image_size=16, patch_size=8)


def small(family, variant, **changes):
    """A variant of a family with all its options at work, two layers deep; windows and scaled positions are shorter than its text."""
    name, make = FAMILIES[family]
    what = make()[variant]
    config = what["config"] | TINY | changes
    if "head_dim" in config:
        config["head_dim"] = 4
    return families.configured(name, config), getattr(hf, what.get("class", name)), {"n_tokens": 18}


def gemma3():
    """The language model inside a wrapper, with a tower that is not run."""
    config = FAMILIES["gemma3"][1]()["tied"]["config"]
    text = config["text_config"] | TINY | dict(head_dim=4, sliding_window_pattern=2)
    vision = config["vision_config"] | dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    tokens = dict(image_token_index=27, boi_token_index=26, eoi_token_index=25)
    name = FAMILIES["gemma3"][0]
    config = config | tokens | dict(text_config=text, vision_config=vision)
    return families.configured(name, config), getattr(hf, name), {"n_tokens": 18}


def mistral3():
    """The same of Ministral 3 and Pixtral."""
    text = FAMILIES["ministral3"][1]()["windowed"]["config"] | TINY | dict(head_dim=4, model_type="ministral3")
    name = "Mistral3ForConditionalGeneration"
    config = dict(text_config=text, vision_config=PIXTRAL, image_token_index=27, tie_word_embeddings=False)
    return families.configured(name, config), getattr(hf, name), {"n_tokens": 18}


# name: what gives config, class and keyword arguments of `write`; the families that tests/families.rs compares at length.
SMALL = {
    "qwen2_windowed": lambda: small("qwen2", "implied", max_window_layers=1),
    "qwen3_windowed": lambda: small("qwen3", "implied", max_window_layers=1),
    "mistral_windowed": lambda: small("mistral", "windowed"),
    "ministral_windowed": lambda: small("ministral", "explicit", layer_types=[TWO, ONE]),
    "ministral3_windowed": lambda: small("ministral3", "windowed"),
    "mistral3_untied": mistral3,
    "gemma2_tied": lambda: small("gemma2", "implied_tied"),
    "gemma3_text_tied": lambda: small("gemma3_text", "implied_tied", sliding_window_pattern=2),
    "gemma3_tied": gemma3,
    "phi3_longrope_tied": lambda: small(
        "phi3",
        "longrope_tied",
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters=longrope(2) | {"partial_rotary_factor": 0.5},
    ),
    "olmo2_biased": lambda: small("olmo2", "biased"),
    "olmo3_windowed": lambda: small("olmo3", "implied", layer_types=[TWO, ONE]),
    "smollm3_windowed": lambda: small("smollm3", "implied", no_rope_layer_interval=2),
    "granite_biased": lambda: small("granite", "biased"),
    "gpt_neox_parallel": lambda: small("gpt_neox", "parallel"),
    "roberta_tied": lambda: small("roberta", "tied"),
    "distilbert_tied": lambda: small("distilbert", "tied", dim=16, hidden_dim=12, n_layers=2),
    "modernbert_biased": lambda: small("modernbert", "biased_implied", global_attn_every_n_layers=2),
    "starcoder2_windowed": lambda: small("starcoder2", "windowed"),
    "qwen3_moe_dense": lambda: small("qwen3_moe", "dense_named", num_experts=4, moe_intermediate_size=8),
    "qwen2_moe_shared": lambda: small(
        "qwen2_moe", "implied", num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=12, mlp_only_layers=[]
    ),
    "mixtral_windowed": lambda: small("mixtral", "windowed", num_local_experts=4, intermediate_size=8),
    "olmoe_biased": lambda: small("olmoe", "biased", num_experts=4, intermediate_size=8),
    "gpt_oss_windowed": lambda: small("gpt_oss", "implied", num_local_experts=4, intermediate_size=8),
    "nemotron_h_biased": lambda: small(
        "nemotron_h", "biased", **MAMBA, mamba_num_heads=4, layers_block_type=["mamba", "attention", "mlp", "mamba"]
    ),
    "bamba_biased": lambda: small(
        "bamba", "biased", mamba_n_heads=8, mamba_d_head=4, mamba_d_state=4, mamba_chunk_size=8, attn_layer_indices=[1]
    ),
}

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(rope_theta=10000.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", factor=4.0, rope_theta=10000.0)
EIGHT_HEADS_OF_6 = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=6)

# name: (model, keyword arguments of `write`)
CASES = {
    "llama_tied": lambda: (llama(tie_word_embeddings=True), {}),
    "llama_untied": lambda: (llama(num_hidden_layers=3), {}),
    "llama_mha_biases": lambda: (llama(num_key_value_heads=4, attention_bias=True, mlp_bias=True), {}),
    "llama_rope_llama3": lambda: (llama(rope_parameters=LLAMA3, max_position_embeddings=256), {"n_tokens": 100}),
    "llama_rope_linear": lambda: (llama(rope_parameters=LINEAR, max_position_embeddings=128), {"n_tokens": 60}),
    "llama_rope_old_keys": lambda: (
        llama(rope_parameters=LLAMA3, max_position_embeddings=256),
        {"config": old_rope_keys, "n_tokens": 80},
    ),
    "llama_head_dim": lambda: (llama(**EIGHT_HEADS_OF_6), {}),
    "llama_bf16_sharded": lambda: (llama().to(torch.bfloat16), {"max_shard_size": "20KB"}),
    "nemotron_untied": lambda: (nemotron(), {}),
    "nemotron_tied": lambda: (nemotron(tie_word_embeddings=True, attention_bias=True, mlp_bias=True), {}),
    "gpt2_gelu_new": lambda: (gpt2(), {}),
    "gpt2_gelu": lambda: (gpt2(activation_function="gelu", n_inner=72), {}),
    "gpt2_untied": lambda: (gpt2(tie_word_embeddings=False), {}),
    "gpt2_no_prefix": lambda: (gpt2(), {"tensors": gpt2_without_prefix}),
    "bert_pooler": lambda: (bert(), {}),
    "bert_no_pooler": lambda: (bert(arguments={"add_pooling_layer": False}), {}),
    "bert_masked_lm": lambda: (bert(hf.BertForMaskedLM), {}),
    "bert_masked_lm_untied": lambda: (bert(hf.BertForMaskedLM, tie_word_embeddings=False), {}),
    "bert_pretraining": lambda: (bert(hf.BertForPreTraining), {}),
    "bert_old_names": lambda: (bert(hf.BertForPreTraining), {"tensors": bert_in_old_spelling}),
}


def old_rope_keys(config):
    """`rope_theta` and `rope_scaling`, as written before version 5."""
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    return config


def write(name, model, seed, n_tokens=24, config=None, tensors=None, max_shard_size="5GB", vocab=VOCAB):
    generator = torch.Generator().manual_seed(seed)
    dtype = model.dtype
    if name in SMALL:
        families.randomise(model, seed)
    else:
        randomise(model.float(), generator).to(dtype)
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if tensors is not None:
        path = folder / "model.safetensors"
        save_file(tensors(load_file(path)), path, metadata={"format": "pt"})
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(config(json.loads(path.read_text())), indent=2) + "\n")
    # From the files, in f32: what a reader of the folder has to reproduce.
    model = reference.load(folder)
    input_ids = torch.randint(3, vocab, (2, n_tokens), generator=generator)
    sites = Sites(model)
    expected = {"input_ids": input_ids} | reference.outputs(model, input_ids)
    expected |= scores(sites, model.config.get_text_config())
    save(expected, folder / "expected.safetensors")


# --- scores of weights, gradients and ablations --------------------------------------------------------------------

# Per layer: what goes with a neuron and with a query head, as (name, axis); GPT-2 stores [in, out].
COUPLED = {
    "llama": {
        "mlp": [("mlp.gate_proj.weight", 0), ("mlp.up_proj.weight", 0), ("mlp.down_proj.weight", 1)],
        "heads": [("self_attn.q_proj.weight", 0), ("self_attn.o_proj.weight", 1)],
    },
    "nemotron": {
        "mlp": [("mlp.up_proj.weight", 0), ("mlp.down_proj.weight", 1)],
        "heads": [("self_attn.q_proj.weight", 0), ("self_attn.o_proj.weight", 1)],
    },
    "gpt2": {
        "mlp": [("mlp.c_fc.weight", 1), ("mlp.c_fc.bias", 0), ("mlp.c_proj.weight", 0)],
        "heads": [("attn.c_attn.weight", 1), ("attn.c_attn.bias", 0), ("attn.c_proj.weight", 0)],
    },
}


def per_unit(values, axis, n_units, n_parts):
    """Sums over all but the units of one axis; a fused matrix holds queries, keys and values of all heads in a row."""
    values = values.movedim(axis, 0).flatten(1) if values.dim() > 1 else values[:, None]
    total = values.sum(1)
    return total.unflatten(0, (n_parts, n_units, -1)).sum((0, 2))


def next_token_loss(model, input_ids):
    return F.cross_entropy(model(input_ids).logits[:, :-1].flatten(0, 1).double(), input_ids[:, 1:].flatten())


def write_metrics(name):
    folder = FIXTURES / name
    model = reference.load(folder)
    input_ids = load_file(folder / "expected.safetensors")["input_ids"]
    next_token_loss(model, input_ids).backward()
    base = model.base_model
    layers = getattr(base, "layers", None) or base.h
    n_heads = model.config.num_attention_heads
    squares, products = ({}, {})
    for kind, coupled in COUPLED[model.config.model_type].items():
        for idx, layer in enumerate(layers):
            weights = dict(layer.named_parameters())
            n_units = n_heads if kind == "heads" else weights[coupled[-1][0]].shape[coupled[-1][1]]
            for target, value in ((squares, lambda w: w.square()), (products, lambda w: (w * w.grad).abs())):
                terms = [per_unit(value(weights[key]), axis, n_units, 3 if "c_attn" in key else 1) for key, axis in coupled]
                target[f"{kind}.{idx}"] = sum(terms).detach().double()
    result = {f"magnitude/{dim}": total.sqrt() for dim, total in squares.items()}
    result |= {f"taylor/{dim}": total for dim, total in products.items()}
    depth = [sum((p * p.grad).abs().sum() for p in layer.parameters()).detach().double() for layer in layers]
    result["taylor/depth"] = torch.stack(depth)
    losses, errors = ([], [])
    with torch.no_grad():
        whole = base(input_ids).last_hidden_state.double()
    for idx in range(len(layers)):
        # The layer's place is taken by what gives its input back.
        hook = layers[idx].register_forward_hook(
            lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
        )
        with torch.no_grad():
            losses.append(next_token_loss(model, input_ids))
            errors.append((whole - base(input_ids).last_hidden_state.double()).square().sum() / whole.square().sum())
        hook.remove()
    result["perplexity/depth"] = torch.stack(losses)
    result["normalised_error/depth"] = torch.stack(errors)
    save({key: value.contiguous() for key, value in result.items()}, folder / "metrics.safetensors")


# --- neurons that stayed -------------------------------------------------------------------------------------------

# Per family: what reads the stream in an MLP, the axis of its neurons, and what reads the neurons, with theirs.
NEURONS = {
    "llama": ([("mlp.gate_proj", 0), ("mlp.up_proj", 0)], ("mlp.down_proj", 1)),
    "nemotron": ([("mlp.up_proj", 0)], ("mlp.down_proj", 1)),
    "gpt2": ([("mlp.c_fc", 1)], ("mlp.c_proj", 0)),
}


def layers_of(model):
    return getattr(model.base_model, "layers", None) or model.base_model.h


def cut_neurons(model, depth, kept):
    """The layers of `depth`, and of each the neurons that `kept` names."""
    student = copy.deepcopy(model)
    layers = torch.nn.ModuleList(layers_of(student)[idx] for idx in depth)
    setattr(student.base_model, "layers" if hasattr(student.base_model, "layers") else "h", layers)
    reads, writes = NEURONS[model.config.model_type]
    for idx, layer in zip(depth, layers):
        for name, axis in [*reads, writes]:
            module = resolved(layer, name)
            module.weight = torch.nn.Parameter(module.weight.detach().index_select(axis, kept[idx]))
            if (name, axis) != writes and module.bias is not None:
                module.bias = torch.nn.Parameter(module.bias.detach()[kept[idx]])
            if hasattr(module, "nf"):
                module.nf = module.weight.shape[1]  # GPT-2's projections are told how wide they are
    return student


def projected(model, input_ids):
    """Per layer, what each projection that reads the stream in the MLP gives."""
    found = []
    reads, _ = NEURONS[model.config.model_type]
    modules = [[resolved(layer, name) for name, _ in reads] for layer in layers_of(model)]
    for of_layer in modules:
        found.append([])
        for module in of_layer:
            module.register_forward_hook(lambda _, args, out, into=found[-1]: into.append(out))
    model(input_ids, use_cache=False)
    return found


def write_neuron_clone(name):
    folder = FIXTURES / name
    teacher = reference.load(folder)
    input_ids = load_file(folder / "expected.safetensors")["input_ids"]
    generator = torch.Generator().manual_seed(3)
    n_layers = len(layers_of(teacher))
    depth = [idx for idx in range(n_layers) if idx != n_layers - 2]
    reads, _ = NEURONS[teacher.config.model_type]
    widths = [resolved(layer, reads[0][0]).weight.shape[reads[0][1]] for layer in layers_of(teacher)]
    kept = [torch.randperm(width, generator=generator)[: width // 2].sort().values for width in widths]
    student = cut_neurons(teacher, depth, kept)
    with torch.no_grad():
        theirs = projected(teacher, input_ids)
    ours = projected(student, input_ids)
    terms = [
        (a - b[..., kept[idx]]).double().square().mean()
        for idx, of_layer in zip(depth, ours)
        for a, b in zip(of_layer, theirs[idx])
    ]
    value = torch.stack(terms).mean()
    value.backward()
    result = {"value": value.detach(), "kept/depth": torch.tensor(depth)}
    result |= {f"kept/mlp.{idx}": units for idx, units in enumerate(kept)}
    gradients = {key: p.grad for key, p in student.named_parameters() if p.grad is not None}
    shown = ("gate_proj.weight", "up_proj.weight", "c_fc.weight", "q_proj.weight", "embed_tokens.weight", "wte.weight")
    result |= {f"gradient/{key}": grad.contiguous() for key, grad in gradients.items() if key.endswith(shown)}
    save(result, folder / "neuron_clone.safetensors")


# --- training ------------------------------------------------------------------------------------------------------


def sines(shape, scale, phase):
    """scale * sin(0.7 i + phase), i counting the elements, rounded to f32."""
    return (scale * torch.sin(0.7 * torch.arange(math.prod(shape)).double() + phase)).view(shape).float()


def kl(p, q):
    """p and q as log-probabilities."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def top_k(s, t, k):
    """From probabilities, renormalised."""
    p, q = t.softmax(-1), s.softmax(-1)
    tokens = p.topk(k, -1).indices
    p, q = p.gather(-1, tokens), q.gather(-1, tokens)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return (p.xlogy(p) - p.xlogy(q)).sum(-1)


def jensen_shannon(s, t, beta):
    mixture = (beta * t.softmax(-1) + (1 - beta) * s.softmax(-1)).log()
    return beta * kl(t.log_softmax(-1), mixture) + (1 - beta) * kl(s.log_softmax(-1), mixture)


def forward(s, t):
    return kl(t.log_softmax(-1), s.log_softmax(-1))


def reverse(s, t):
    return kl(s.log_softmax(-1), t.log_softmax(-1))


# A plugin as the command line names it, and its loss of logits of student, teacher, and labels.
LOSSES = {
    "cross_entropy": lambda s, t, labels: F.cross_entropy(s, labels, reduction="none"),
    "forward_kl": lambda s, t, _: forward(s, t),
    "forward_kl:temperature=2": lambda s, t, _: 4 * forward(s / 2, t / 2),
    "forward_kl:temperature=2,scale_by_t2=false": lambda s, t, _: forward(s / 2, t / 2),
    "forward_kl:temperature=0.5": lambda s, t, _: forward(s / 0.5, t / 0.5) / 4,
    "reverse_kl": lambda s, t, _: reverse(s, t),
    "reverse_kl:temperature=3": lambda s, t, _: 9 * reverse(s / 3, t / 3),
    "reverse_kl:temperature=3,scale_by_t2=false": lambda s, t, _: reverse(s / 3, t / 3),
    "jensen_shannon": lambda s, t, _: jensen_shannon(s, t, 0.5),
    "jensen_shannon:beta=0.1": lambda s, t, _: jensen_shannon(s, t, 0.1),
    "jensen_shannon:beta=0.9,temperature=2": lambda s, t, _: 4 * jensen_shannon(s / 2, t / 2, 0.9),
    "jensen_shannon:beta=0.9,temperature=2,scale_by_t2=false": lambda s, t, _: jensen_shannon(s / 2, t / 2, 0.9),
    "top_k_kl": lambda s, t, _: forward(s, t),  # k is 100, the vocabulary smaller
    "top_k_kl:k=3": lambda s, t, _: top_k(s, t, 3),
    "top_k_kl:k=4,temperature=2": lambda s, t, _: 4 * top_k(s / 2, t / 2, 4),
    "top_k_kl:k=4,temperature=2,scale_by_t2=false": lambda s, t, _: top_k(s / 2, t / 2, 4),
    "logit_mse": lambda s, t, _: F.mse_loss(s, t, reduction="none").mean(-1),
    "logit_cosine": lambda s, t, _: 1 - F.cosine_similarity(s, t, dim=-1),
}


def write_losses():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (4 * torch.randn(9, 50, generator=generator) for _ in range(2))
    teacher[0] = student[0]  # no divergence
    teacher[1] *= 20  # probabilities that vanish in f32
    inputs = {
        "random": (student, teacher, torch.randint(50, (9,), generator=generator)),
        "sines": (sines((6, 5), 2, 0), sines((6, 5), 3, 1), torch.tensor([1, 2, 3, 0, 4, 2])),
    }
    result = {}
    for name, (student, teacher, labels) in inputs.items():
        result |= {f"{name}.student": student, f"{name}.teacher": teacher, f"{name}.labels": labels}
        for plugin, loss in LOSSES.items():
            leaf = student.double().requires_grad_(True)
            loss_n = loss(leaf, teacher.double(), labels)
            (gradient,) = torch.autograd.grad(loss_n.mean(), leaf)
            result |= {f"{name}/{plugin}": loss_n.detach(), f"{name}/{plugin}.gradient": gradient}
    save(result, FIXTURES / "losses.safetensors")


def cosine(s, t, seen):
    return 1 - F.cosine_similarity(s[seen], t[seen], dim=-1).mean()


def mse(s, t, seen):
    return F.mse_loss(s[seen], t[seen])


def embedding(distance, pooling):
    """Of a sentence at a time, counted by its tokens."""

    def loss(s, t, seen):
        values = []
        for one, other, kept in zip(s, t, seen):
            student, teacher = (x[kept].mean(0) if pooling == "mean" else x[kept][0] for x in (one, other))
            value = F.mse_loss(student, teacher) if distance == "mse" else 1 - F.cosine_similarity(student, teacher, dim=0)
            values.append(kept.sum() * value)
        return torch.stack(values).sum() / seen.sum()

    return loss


def relation(n_heads, causal):
    """MiniLMv2, position after position: sample, head and query at a time, over the keys that it may relate to."""

    def loss(s, t, seen):
        terms = []
        for one, other, kept in zip(s, t, seen):
            for a, b in zip(one[kept].chunk(n_heads, -1), other[kept].chunk(n_heads, -1)):
                for at in range(len(a)):
                    end = at + 1 if causal else len(a)
                    student, teacher = (x[:end] @ x[at] / x.shape[-1] ** 0.5 for x in (a, b))
                    terms.append(kl(teacher.log_softmax(-1), student.log_softmax(-1)))
        return torch.stack(terms).mean()

    return loss


ALL_SEEN = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
ENDS_FILLED = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]

# name: (width of student and teacher, which positions are seen, loss); golden.rs says which plugin each is.
STATE_LOSSES = {
    "cosine": (6, 6, ALL_SEEN, cosine),
    "cosine_filled": (6, 6, ENDS_FILLED, cosine),
    "mse": (6, 6, ALL_SEEN, mse),
    "mse_filled": (6, 6, ENDS_FILLED, mse),
    "embedding_cosine": (6, 6, ALL_SEEN, embedding("cosine", "mean")),
    "embedding_cosine_filled": (6, 6, ENDS_FILLED, embedding("cosine", "mean")),
    "embedding_mse_cls_filled": (6, 6, ENDS_FILLED, embedding("mse", "cls")),
    "relation_3_heads_of_6": (12, 24, ALL_SEEN, relation(3, causal=False)),
    "relation_3_heads_of_6_causal": (12, 24, ALL_SEEN, relation(3, causal=True)),
    "relation_common_divisor": (12, 18, ENDS_FILLED, relation(2, causal=False)),
    "relation_common_divisor_causal": (12, 18, ENDS_FILLED, relation(2, causal=True)),
    "relation_given": (12, 18, ENDS_FILLED, relation(6, causal=True)),
}


def write_state_losses():
    result = {}
    for name, (width, of_teacher, seen, loss) in STATE_LOSSES.items():
        seen = torch.tensor(seen)
        student, teacher = sines((*seen.shape, width), 2, 0), sines((*seen.shape, of_teacher), 3, 1)
        leaf = student.double().requires_grad_(True)
        value = loss(leaf, teacher.double(), seen.bool())
        (gradient,) = torch.autograd.grad(value, leaf)
        result |= {f"{name}.student": student, f"{name}.teacher": teacher, f"{name}.seen": seen}
        result |= {name: value.detach(), f"{name}.gradient": gradient}
    save(result, FIXTURES / "state_losses.safetensors")


def write_adamw():
    """`parameter.0` before, `gradient.K` and `parameter.K` at step K = 1 to 5."""
    generator = torch.Generator().manual_seed(2)
    parameter = torch.nn.Parameter(torch.randn(4, 3, generator=generator))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    result = {"parameter.0": parameter.detach().clone()}
    for step in range(1, 6):
        parameter.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
        result |= {f"gradient.{step}": parameter.grad.clone(), f"parameter.{step}": parameter.detach().clone()}
    save(result, FIXTURES / "adamw.safetensors")


def write_mxfp4():
    """Codes and scales of every value that stays finite, and what `transformers` makes of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(77)
    codes = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 252, (3, 8, 2), dtype=torch.uint8, generator=generator)
    plain = convert_moe_packed_tensors(codes, scales)
    save_file({"w_blocks": codes, "w_scales": scales}, FIXTURES / "mxfp4.safetensors")
    save_file({"w": plain.contiguous()}, FIXTURES / "mxfp4_plain.safetensors")


def main():
    torch.set_num_threads(1)
    hf.utils.logging.disable_progress_bar()
    others = {"losses": write_losses, "state_losses": write_state_losses, "adamw": write_adamw, "mxfp4": write_mxfp4}
    known = [*CASES, *SMALL, "metrics", *others]
    wanted = sys.argv[1:] or known
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"make: no case is called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    FIXTURES.mkdir(exist_ok=True)
    for seed, (name, case) in enumerate(CASES.items(), start=100):
        if name in wanted:
            model, arguments = case()
            write(name, model, seed, **arguments)
    for seed, (name, case) in enumerate(SMALL.items(), start=200):
        if name in wanted:
            config, kind, arguments = case()
            # The last ids of a small vocabulary stand for images.
            write(name, kind(config), seed, vocab=TINY["vocab_size"] - 4, **arguments)
    if "metrics" in wanted:
        for name in ("llama_untied", "nemotron_untied", "gpt2_gelu"):
            write_metrics(name)
            write_neuron_clone(name)
    for name, write_file in others.items():
        if name in wanted:
            write_file()


if __name__ == "__main__":
    main()
