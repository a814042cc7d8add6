"""Tiny random models of each family, in variants that together switch on every option of its class.

A variant names what to switch off again, one option at a time (`off`), so that it can be shown that each option is at work.
"""

# Queries of unequal lengths, longer than any window, on both sides of the length that scaled positions begin at.
SHORT, LONG = 11, 40
# Scaled positions begin here, and windows are this wide.
ORIGINAL, WINDOW = 16, 7
# Tokens of a prompt, and how many are added: the cache is longer than the window.
GENERATE = (9, 14)

DECODER = {
    "vocab_size": 112,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
ENCODER = {
    "vocab_size": 112,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def rope(kind, theta=10000.0, **more):
    """The parameters of one kind of rope."""
    by_kind = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "llama3": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 4.0, "beta_slow": 1.0},
    }
    return {"rope_type": kind, "rope_theta": theta} | by_kind[kind] | more


# Frequencies that turn within a tiny head's few pairs.
YARN = rope("yarn", 100.0)
YARN_BY_HAND = rope("yarn", 100.0, truncate=False, mscale=0.7, mscale_all_dim=1.3)
LLAMA3 = rope("llama3", 100.0)
DEFAULT = rope("default", 100.0)
# Positions that scale with the length, on both sides of it.
DYNAMIC = {"rope_parameters": rope("dynamic", 100.0), "max_position_embeddings": 24}
ONE, TWO = "full_attention", "sliding_attention"
MIXED = [TWO, ONE, ONE, TWO, TWO, ONE]


def longrope(n_pairs):
    """Factors that differ for each pair."""
    return {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + 0.1 * i for i in range(n_pairs)],
        "long_factor": [2.0 + 0.5 * i for i in range(n_pairs)],
    }


def ropes(base, kinds=("linear", "dynamic", "llama3", "yarn", "yarn_by_hand", "longrope")):
    """One small variant for each kind of rope, of a class that takes them all the same way."""
    small = base | {"num_hidden_layers": 2} | ({"layer_types": [TWO, ONE]} if "layer_types" in base else {})
    head_dim = base.get("head_dim") or base["hidden_size"] // base["num_attention_heads"]
    by_kind = {
        "linear": {"rope_parameters": rope("linear", 100.0)},
        "dynamic": DYNAMIC,
        "llama3": {"rope_parameters": LLAMA3},
        "yarn": {"rope_parameters": YARN},
        "yarn_by_hand": {"rope_parameters": YARN_BY_HAND},
        "longrope": {"rope_parameters": longrope(head_dim // 2)},
    }
    # A part of a head that turns is stated with the rest.
    stated = base.get("rope_parameters") or {}
    partial = {key: stated[key] for key in ["partial_rotary_factor"] if key in stated}
    by_kind = {kind: more | {"rope_parameters": more["rope_parameters"] | partial} for kind, more in by_kind.items()}
    off = {"rope": {"rope_parameters": DEFAULT | partial}}
    # Cached keys keep the rotation they were made with: what is generated stays on one side.
    within = {"dynamic": (6, 14), "longrope": (5, 11)}
    return {
        f"rope_{kind}": {"config": small | by_kind[kind], "off": off, "slow": True, "generate": within.get(kind, GENERATE)}
        for kind in kinds
    }


def llama():
    base = DECODER | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}
    off = {"attention_bias": {"attention_bias": False}, "mlp_bias": {"mlp_bias": False}}
    return {
        "biased": {"config": base | {"rope_parameters": LLAMA3}, "off": off | {"rope": {"rope_parameters": DEFAULT}}},
        "tied": {"config": DECODER | {"tie_word_embeddings": True, "rope_parameters": DEFAULT}},
        **ropes(base),
    }


def nemotron():
    base = DECODER | {"head_dim": 16, "hidden_act": "relu2", "norm_eps": 1e-5}
    partial = DEFAULT | {"partial_rotary_factor": 0.5}
    return {
        "biased": {
            "config": base | {"attention_bias": True, "mlp_bias": True, "rope_parameters": partial},
            "off": {
                "attention_bias": {"attention_bias": False},
                "mlp_bias": {"mlp_bias": False},
                "partial": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0}},
            },
        },
        "tied": {"config": base | {"tie_word_embeddings": True, "rope_parameters": partial}},
    }


def nemotron_h():
    base = {key: value for key, value in DECODER.items() if key != "num_hidden_layers"}
    base |= {"head_dim": 16, "mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 12}
    # No step of theirs is at the lower bound, which the class keeps to for all tokens but one behind a state.
    base |= {"conv_kernel": 4, "chunk_size": 16, "time_step_min": 1e-6, "time_step_floor": 0.5}
    # M, *, - and M again: each kind is in the first, the middle or the last layer.
    kinds = ["linear_attention", "full_attention", "mlp", "linear_attention", "mlp", "linear_attention", "full_attention"]
    return {
        "biased": {
            "config": base | {"layers_block_type": kinds, "use_bias": True, "mlp_bias": True},
            "off": {
                "use_bias": {"use_bias": False},
                "mlp_bias": {"mlp_bias": False},
                "conv_bias": {"use_conv_bias": False},
                "groups": {"n_groups": 1, "ssm_state_size": 24},
            },
        },
        # The keys of published configs; a list goes before a pattern, and both are kept.
        "pattern": {
            "config": base | {"hybrid_override_pattern": "M*-M*M", "n_groups": 1, "use_conv_bias": False},
            "json": {"hybrid_override_pattern": "M*-M*M", "num_hidden_layers": 6, "rms_norm_eps": 1e-5},
            "without": ["layers_block_type"],
        },
        # Steps that are cut from below; one token behind a state takes them uncut there, so nothing is cached.
        "steps": {
            "config": base | {"layers_block_type": ["mamba", "attention"] * 2, "time_step_min": 1.2},
            "json": {"layers_block_type": ["mamba", "attention"] * 2},
            "off": {"steps": {"time_step_min": 0.001}},
            "cached": False,
        },
        "experts": {
            "config": base
            | {
                "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
                "n_routed_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 20,
                "moe_shared_expert_intermediate_size": 28,
                "n_group": 3,
                "topk_group": 2,
                "routed_scaling_factor": 1.7,
                "mlp_bias": True,
            },
            "off": {
                "groups_of_experts": {"n_group": 1, "topk_group": 1},
                "renormalised": {"norm_topk_prob": False},
                "scaled": {"routed_scaling_factor": 1.0},
            },
        },
        "groups": {
            "config": base | {"layers_block_type": ["linear_attention", "full_attention"] * 2, "n_groups": 3, "conv_kernel": 2},
            "slow": True,
        },
    }


def bamba():
    base = DECODER | {"mamba_n_heads": 12, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_expand": 2}
    base |= {"mamba_chunk_size": 16, "rms_norm_eps": 1e-2, "attn_layer_indices": [1, 3], "num_hidden_layers": 4}
    base |= {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}
    biases = {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}
    off = {key: {key: False} for key in [*biases, "mamba_conv_bias"]}
    off |= {"groups": {"mamba_n_groups": 1, "mamba_d_state": 24}}
    return {
        "biased": {
            "config": base | biases | {"head_dim": 16},
            "off": off | {"partial": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0}}},
        },
        "tied": {
            "config": base | {"tie_word_embeddings": True, "mamba_n_groups": 1, "mamba_conv_bias": False},
        },
        "steps": {
            "config": base | {"time_step_limit": [1.2, 1.6]},
            "off": {"least": {"time_step_limit": [0.0, 1.6]}, "most": {"time_step_limit": [1.2, float("inf")]}},
            "cached": False,
        },
        # The keys of published configs, which leave the width of a head to the class.
        "published": {
            "config": base,
            "json": {"mamba_d_head": "auto", "rope_theta": 1000.0, "partial_rotary_factor": 0.9},
            "without": ["rope_parameters", "time_step_limit"],
            "slow": True,
        },
    }


def gpt2():
    base = {"vocab_size": 112, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_inner": 80, "n_positions": 64}
    base |= {"bos_token_id": 1, "eos_token_id": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {
        "tied": {"config": base | {"activation_function": "gelu_new"}, "off": {"act": {"activation_function": "relu"}}},
        "untied": {"config": base | {"activation_function": "gelu", "tie_word_embeddings": False}},
    }


def bert():
    base = ENCODER | {"type_vocab_size": 2}
    return {"tied": {"config": base, "class": "BertForMaskedLM"}, "bare": {"config": base, "class": "BertModel"}}


def qwen2():
    base = DECODER | {"use_sliding_window": True, "sliding_window": WINDOW, "rope_parameters": DEFAULT}
    return {
        # `head_dim` is no field of the class; it keeps the key and reads it.
        "implied": {
            "config": base | {"head_dim": 16, "max_window_layers": 2, "rope_parameters": YARN},
            "off": {
                "window": {"use_sliding_window": False},
                "implied": {"max_window_layers": 4},
                "rope": {"rope_parameters": DEFAULT},
            },
        },
        "explicit_tied": {
            "config": base | {"layer_types": MIXED, "tie_word_embeddings": True},
            "off": {"layer_types": {"layer_types": [ONE, TWO, ONE, TWO, TWO, ONE]}},
        },
        # The keys that most published configs have.
        "published": {
            "config": base | {"max_window_layers": 6, "use_sliding_window": False, "tie_word_embeddings": True},
            "json": {"rope_theta": 1000.0, "rope_scaling": None, "sliding_window": WINDOW},
            "without": ["rope_parameters", "layer_types"],
        },
        **ropes(base | {"layer_types": MIXED, "head_dim": 16}),
    }


def qwen3():
    base = DECODER | {"head_dim": 16, "attention_bias": True, "rope_parameters": DEFAULT}
    base |= {"use_sliding_window": True, "sliding_window": WINDOW}
    return {
        "implied": {
            "config": base | {"max_window_layers": 3, "rope_parameters": YARN},
            "off": {
                "attention_bias": {"attention_bias": False},
                "window": {"use_sliding_window": False},
                "implied": {"max_window_layers": 5},
                "rope": {"rope_parameters": DEFAULT},
            },
        },
        "explicit_tied": {
            "config": base | {"layer_types": MIXED, "tie_word_embeddings": True, "attention_bias": False},
            "off": {"layer_types": {"layer_types": [ONE, TWO, ONE, TWO, TWO, ONE]}},
        },
        "published": {
            "config": base | {"attention_bias": False, "max_window_layers": 6, "use_sliding_window": False},
            "json": {
                "rope_theta": 100.0,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
                "sliding_window": None,
            },
            "without": ["rope_parameters", "layer_types"],
        },
        **ropes(base | {"layer_types": MIXED}),
    }


def mistral():
    base = DECODER | {"head_dim": 16, "sliding_window": WINDOW, "rope_parameters": DEFAULT}
    return {
        "windowed": {"config": base, "off": {"window": {"sliding_window": None}}},
        "tied": {
            "config": base | {"sliding_window": None, "head_dim": None, "tie_word_embeddings": True},
        },
        "published": {
            "config": base | {"head_dim": None},
            "json": {"rope_theta": 1000.0, "sliding_window": None},
            "without": ["rope_parameters", "head_dim", "tie_word_embeddings"],
        },
        **ropes(base),
    }


def ministral():
    base = DECODER | {"head_dim": 16, "sliding_window": WINDOW, "rope_parameters": DEFAULT}
    return {
        "explicit": {
            "config": base | {"layer_types": MIXED},
            "off": {"layer_types": {"layer_types": [ONE, TWO, ONE, TWO, TWO, ONE]}, "window": {"sliding_window": 30}},
        },
        # Each layer has the window where no list says otherwise.
        "implied_tied": {"config": base | {"tie_word_embeddings": True}, "off": {"window": {"layer_types": [ONE] * 6}}},
        **ropes(base | {"layer_types": MIXED}),
    }


def ministral3():
    scaled = rope("yarn", 100.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.7)
    unscaled = scaled | {"llama_4_scaling_beta": 0.0}
    base = DECODER | {"head_dim": 16, "sliding_window": WINDOW, "rope_parameters": scaled}
    off = {"llama_4": {"rope_parameters": unscaled}, "window": {"sliding_window": None}}
    plain = DEFAULT | {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": ORIGINAL}
    return {
        "windowed": {"config": base, "off": off | {"rope": {"rope_parameters": plain}}},
        "tied": {
            "config": base | {"sliding_window": None, "rope_parameters": plain, "tie_word_embeddings": True},
            "off": {"llama_4": {"rope_parameters": plain | {"llama_4_scaling_beta": 0.0}}},
        },
    }


def gemma2():
    base = DECODER | {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "attention_bias": True,
        "query_pre_attn_scalar": 9,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "rope_parameters": DEFAULT,
        "pad_token_id": 0,
    }
    off = {
        "window": {"layer_types": [ONE] * 6},
        "attention_bias": {"attention_bias": False},
        "scale": {"query_pre_attn_scalar": 16},
        "attention_softcap": {"attn_logit_softcapping": None},
        "logits_softcap": {"final_logit_softcapping": None},
    }
    return {
        "implied_tied": {"config": base | {"tie_word_embeddings": True}, "off": off},
        "explicit": {
            "config": base | {"layer_types": MIXED, "attention_bias": False},
            "off": {"layer_types": {"layer_types": [TWO, ONE] * 3}},
        },
        "published": {
            "config": base | {"attention_bias": False, "tie_word_embeddings": True},
            "json": {"rope_theta": 1000.0, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
            "without": ["rope_parameters", "layer_types", "tie_word_embeddings"],
        },
        **ropes(base),
    }


def gemma3_text():
    nested = {TWO: DEFAULT, ONE: rope("linear", 1000.0)}
    base = DECODER | {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "attention_bias": True,
        "query_pre_attn_scalar": 9,
        "final_logit_softcapping": 3.0,
        "rope_parameters": nested,
        "sliding_window_pattern": 3,
        "pad_token_id": 0,
    }
    off = {
        "window": {"sliding_window": 60},
        "pattern": {"sliding_window_pattern": 2},
        "attention_bias": {"attention_bias": False},
        "scale": {"query_pre_attn_scalar": 16},
        "logits_softcap": {"final_logit_softcapping": None},
        "rope_of_windows": {"rope_parameters": nested | {TWO: nested[ONE]}},
        "rope_of_all": {"rope_parameters": nested | {ONE: rope("default", 1000.0)}},
    }
    # `attn_logit_softcapping` is left out: the class stores it and never uses it.
    explicit = base | {"layer_types": MIXED, "attention_bias": False}
    return {
        "implied_tied": {"config": base | {"tie_word_embeddings": True}, "off": off},
        "explicit_yarn": {
            "config": explicit | {"rope_parameters": {TWO: DEFAULT, ONE: rope("yarn", 1000.0)}},
            "off": {
                "layer_types": {"layer_types": [TWO, ONE] * 3},
                "rope": {"rope_parameters": {TWO: DEFAULT, ONE: rope("default", 1000.0)}},
            },
        },
        "published": {
            "config": base | {"attention_bias": False, "tie_word_embeddings": True, "final_logit_softcapping": None},
            "json": {
                "rope_theta": 1000.0,
                "rope_local_base_freq": 100.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                "sliding_window_pattern": 3,
            },
            "without": ["rope_parameters", "layer_types", "_sliding_window_pattern"],
        },
        "rope_by_type": {
            "config": explicit | {"rope_parameters": {TWO: LLAMA3, ONE: rope("dynamic", 1000.0)}, "max_position_embeddings": 24},
            "off": {"rope": {"rope_parameters": {TWO: DEFAULT, ONE: rope("default", 1000.0)}}},
            "generate": (6, 14),
            "slow": True,
        },
    }


def gemma3():
    text = gemma3_text()["implied_tied"]["config"] | {"sliding_window_pattern": 3}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 3,
        "vision_use_head": False,
        "model_type": "siglip_vision_model",
    }
    outer = {"mm_tokens_per_image": 4, "image_token_index": 111, "boi_token_index": 110, "eoi_token_index": 109}
    config = outer | {"text_config": text, "vision_config": vision, "pad_token_id": 0}
    untied = {"text_config": text | {"tie_word_embeddings": False}, "tie_word_embeddings": False}
    plain = text | {"attention_bias": False, "final_logit_softcapping": None}
    return {
        "tied": {"config": config},
        "untied": {"config": config | untied, "slow": True},
        # Older names of the tower, and a text config that leaves to the class what it can.
        "published": {
            "config": config | {"text_config": plain},
            "json": {
                "text_config": {
                    "rope_theta": 1000.0,
                    "rope_local_base_freq": 100.0,
                    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                    "sliding_window_pattern": 3,
                }
            },
            "without": [
                "tie_word_embeddings",
                *(f"text_config.{key}" for key in ["rope_parameters", "layer_types", "_sliding_window_pattern"]),
                *(f"text_config.{key}" for key in ["tie_word_embeddings", "attention_bias", "hidden_activation"]),
            ],
            "rename": {"vision_tower.": "vision_tower.vision_model."},
        },
    }


def phi3():
    base = DECODER | {"sliding_window": WINDOW, "rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}
    base |= {"original_max_position_embeddings": ORIGINAL}
    long = longrope(3) | {"partial_rotary_factor": 0.5}
    return {
        # `head_dim` is no field of the class; it keeps the key and reads it, except where it checks factors.
        "partial": {
            "config": base | {"head_dim": 16},
            "off": {"window": {"sliding_window": None}, "partial": {"rope_parameters": DEFAULT}},
        },
        "longrope_tied": {
            "config": base | {"rope_parameters": long, "tie_word_embeddings": True},
            "crosses": True,
            "off": {"rope": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}},
        },
        "published": {
            "config": base | {"rope_parameters": DEFAULT, "sliding_window": None},
            "json": {
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 2.5, 3.0]},
            },
            "without": ["rope_parameters"],
            "crosses": True,
        },
    }


def olmo2():
    base = DECODER | {"attention_bias": True, "rope_parameters": DEFAULT}
    return {
        "biased": {
            "config": base | {"head_dim": 16, "rope_parameters": YARN},
            "off": {"attention_bias": {"attention_bias": False}, "rope": {"rope_parameters": DEFAULT}},
        },
        "tied": {"config": base | {"attention_bias": False, "tie_word_embeddings": True, "num_key_value_heads": 4}},
        **ropes(base | {"head_dim": 16}),
    }


def olmo3():
    nested = {TWO: DEFAULT, ONE: rope("yarn", 1000.0, attention_factor=1.2)}
    base = DECODER | {"attention_bias": True, "rope_parameters": nested, "sliding_window": WINDOW}
    return {
        "implied": {
            "config": base | {"head_dim": 16},
            "off": {
                "attention_bias": {"attention_bias": False},
                "window": {"sliding_window": 60},
                "implied": {"layer_types": [TWO] * 6},
                "rope": {"rope_parameters": nested | {ONE: DEFAULT}},
            },
        },
        "explicit_tied": {
            "config": base | {"layer_types": MIXED, "tie_word_embeddings": True, "attention_bias": False},
            "off": {"layer_types": {"layer_types": [TWO, ONE] * 3}},
        },
        "published": {
            "config": base | {"attention_bias": False},
            "json": {
                "rope_theta": 1000.0,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
            },
            "without": ["rope_parameters"],
        },
        "rope_by_type": {
            "config": base | {"rope_parameters": {TWO: LLAMA3, ONE: rope("dynamic", 1000.0)}, "max_position_embeddings": 24},
            "off": {"rope": {"rope_parameters": {TWO: DEFAULT, ONE: rope("default", 1000.0)}}},
            "generate": (6, 14),
            "slow": True,
        },
    }


def smollm3():
    base = DECODER | {"attention_bias": True, "mlp_bias": True, "rope_parameters": DEFAULT, "pad_token_id": 0}
    windows = {"use_sliding_window": True, "sliding_window": WINDOW}
    return {
        # Layers without rope have the window where no list says otherwise.
        "implied": {
            "config": base | windows | {"head_dim": 16, "no_rope_layer_interval": 3},
            "off": {
                "window": {"use_sliding_window": False},
                "no_rope": {"no_rope_layers": [1] * 6, "layer_types": [ONE, ONE, TWO] * 2},
                "interval": {"no_rope_layer_interval": 2},
                "attention_bias": {"attention_bias": False},
                "mlp_bias": {"mlp_bias": False},
            },
        },
        "explicit_tied": {
            "config": base
            | windows
            | {"no_rope_layers": [1, 0, 1, 1, 0, 1], "layer_types": MIXED, "tie_word_embeddings": True}
            | {"attention_bias": False, "mlp_bias": False},
            "off": {
                "layer_types": {"layer_types": [TWO, ONE] * 3},
                "no_rope_layers": {"no_rope_layers": [1, 0, 1, 1, 1, 0]},
            },
        },
        "published": {
            "config": base | {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
            "json": {"rope_theta": 1000.0, "rope_scaling": None},
            "without": ["rope_parameters", "no_rope_layers", "tie_word_embeddings"],
        },
        **ropes(base | windows | {"layer_types": MIXED, "head_dim": 16}, ("yarn", "linear")),
    }


def granite():
    base = DECODER | {
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.3,
        "logits_scaling": 2.5,
        "rope_parameters": DEFAULT,
    }
    off = {
        "attention_bias": {"attention_bias": False},
        "mlp_bias": {"mlp_bias": False},
        "embedding": {"embedding_multiplier": 1.0},
        "attention": {"attention_multiplier": 0.25},
        "residual": {"residual_multiplier": 1.0},
        "logits": {"logits_scaling": 1.0},
    }
    plain = {"attention_bias": False, "mlp_bias": False}
    return {
        "biased": {"config": base | {"head_dim": 16}, "off": off},
        "tied": {"config": base | plain | {"tie_word_embeddings": True}},
        "published": {
            "config": base | plain | {"tie_word_embeddings": True},
            "json": {"rope_theta": 1000.0, "rope_scaling": None},
            "without": ["rope_parameters"],
        },
        **ropes(base | {"head_dim": 16}),
    }


def gpt_neox():
    base = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
    base |= {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}
    off = {
        "parallel": {"use_parallel_residual": False},
        "partial": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0}},
        "bias": {"attention_bias": False},
    }
    return {
        "parallel": {"config": base, "off": off},
        "sequential_tied": {
            "config": base
            | {"use_parallel_residual": False, "tie_word_embeddings": True, "hidden_act": "gelu_new"}
            | {"attention_bias": False},
            "off": {"parallel": {"use_parallel_residual": True}, "act": {"hidden_act": "relu"}},
        },
        "published": {
            "config": base,
            "json": {"rotary_emb_base": 1000, "rotary_pct": 0.5},
            "without": ["rope_parameters", "attention_bias", "attention_dropout", "hidden_dropout"],
        },
        **ropes(base, ("linear", "dynamic")),
    }


def starcoder2():
    base = DECODER | {"head_dim": 16, "use_bias": True, "sliding_window": WINDOW, "rope_parameters": YARN}
    return {
        # `head_dim` is no field of the class; it keeps the key and reads it.
        "windowed": {
            "config": base,
            "off": {
                "bias": {"use_bias": False},
                "window": {"sliding_window": None},
                "act": {"hidden_act": "relu"},
                "eps": {"norm_epsilon": 0.1},
                "rope": {"rope_parameters": DEFAULT},
            },
        },
        "unbiased_tied": {
            "config": DECODER
            | {"use_bias": False, "hidden_act": "silu", "norm_epsilon": 0.1, "tie_word_embeddings": True}
            | {"rope_parameters": DEFAULT},
            "off": {"act": {"hidden_act": "gelu_pytorch_tanh"}, "eps": {"norm_epsilon": 1e-5}},
        },
        # The keys that published configs have: some are of the program that trained them, and nothing reads them.
        "published": {
            "config": DECODER | {"sliding_window": WINDOW, "rope_parameters": DEFAULT, "tie_word_embeddings": True},
            "json": {
                "rope_theta": 999.4420358813,
                "attention_dropout": 0.1,
                "residual_dropout": 0.1,
                "embedding_dropout": 0.1,
                "rms_norm_eps": 1e-05,
                "norm_type": "layer_norm",
                "mlp_type": "default",
            },
            "without": ["rope_parameters", "tie_word_embeddings", "pad_token_id"],
        },
        **ropes(base),
    }


def roberta():
    # Positions begin after the padding id.
    base = ENCODER | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    return {
        "tied": {"config": base, "class": "RobertaForMaskedLM"},
        "untied": {"config": base | {"tie_word_embeddings": False, "hidden_act": "gelu_new", "type_vocab_size": 2}},
        "bare": {"config": base, "class": "RobertaModel"},
    }


def distilbert():
    base = {"vocab_size": 112, "dim": 48, "hidden_dim": 80, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64}
    return {
        "tied": {"config": base, "off": {"act": {"activation": "relu"}}},
        "untied_relu": {"config": base | {"activation": "relu", "tie_word_embeddings": False}},
        # The flag only fills the table when a model is made.
        "bare_sinusoidal": {"config": base | {"sinusoidal_pos_embds": True}, "class": "DistilBertModel"},
    }


def modernbert():
    nested = {TWO: DEFAULT, ONE: rope("linear", 1000.0)}
    base = ENCODER | {"num_hidden_layers": 6, "local_attention": 8, "rope_parameters": nested}
    base |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    biases = {key: True for key in ["norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"]}
    off = {key: {key: False} for key in biases}
    off |= {
        "window": {"local_attention": 100},
        "act": {"hidden_activation": "relu"},
        "act_of_head": {"classifier_activation": "relu"},
        "implied": {"global_attn_every_n_layers": 2},
        "rope_of_windows": {"rope_parameters": nested | {TWO: nested[ONE]}},
        "rope_of_all": {"rope_parameters": nested | {ONE: DEFAULT}},
    }
    return {
        "biased_implied": {"config": base | biases, "off": off},
        "explicit_untied": {
            "config": base | {"layer_types": MIXED, "decoder_bias": False, "tie_word_embeddings": False},
            "off": {"layer_types": {"layer_types": [TWO, ONE] * 3}},
        },
        "bare": {"config": base, "class": "ModernBertModel"},
        "published": {
            "config": base,
            "json": {"global_rope_theta": 1000.0, "local_rope_theta": 100.0, "global_attn_every_n_layers": 3},
            "without": ["rope_parameters", "layer_types", "tie_word_embeddings"],
        },
    }


EXPERTS = DECODER | {
    "num_hidden_layers": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "rope_parameters": DEFAULT,
}


def qwen3_moe():
    base = EXPERTS | {"num_experts": 6, "head_dim": 16, "norm_topk_prob": True, "attention_bias": True}
    return {
        "dense_named": {
            "config": base | {"mlp_only_layers": [1]},
            "off": {
                "attention_bias": {"attention_bias": False},
                "renormalised": {"norm_topk_prob": False},
                "top_k": {"num_experts_per_tok": 1},
            },
        },
        "stepped_tied": {
            "config": base
            | {
                "decoder_sparse_step": 2,
                "tie_word_embeddings": True,
                "norm_topk_prob": False,
                "use_sliding_window": True,
                "sliding_window": WINDOW,
            },
            "off": {"window": {"use_sliding_window": False}},
        },
        "published": {
            "config": base | {"attention_bias": False},
            "json": {"rope_theta": 100.0, "num_experts": 6},
            "without": ["rope_parameters", "num_local_experts", "mlp_only_layers", "decoder_sparse_step"],
        },
    }


def qwen2_moe():
    base = EXPERTS | {"num_experts": 6, "shared_expert_intermediate_size": 36}
    base |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3}
    return {
        "implied": {
            "config": base | {"mlp_only_layers": [0]},
            "off": {
                "qkv_bias": {"qkv_bias": False},
                "window": {"use_sliding_window": False},
                "renormalised": {"norm_topk_prob": True},
            },
        },
        "renormalised_tied": {
            "config": base
            | {"norm_topk_prob": True, "qkv_bias": False, "tie_word_embeddings": True, "use_sliding_window": False},
        },
    }


def mixtral():
    base = EXPERTS | {"num_local_experts": 5, "intermediate_size": 24, "sliding_window": WINDOW}
    return {
        "windowed": {"config": base, "off": {"window": {"sliding_window": None}, "act": {"hidden_act": "gelu"}}},
        "tied": {"config": base | {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 16}},
        "published": {
            "config": base | {"sliding_window": None},
            "json": {"rope_theta": 100.0},
            "without": ["rope_parameters", "head_dim", "tie_word_embeddings"],
        },
    }


def olmoe():
    base = EXPERTS | {"num_experts": 6, "intermediate_size": 20, "attention_bias": True, "norm_topk_prob": True}
    return {
        "biased": {
            "config": base,
            "off": {"attention_bias": {"attention_bias": False}, "renormalised": {"norm_topk_prob": False}},
        },
        "published": {
            "config": base | {"attention_bias": False, "norm_topk_prob": False},
            "json": {"rope_theta": 100.0},
            "without": ["rope_parameters"],
        },
    }


def gpt_oss():
    base = EXPERTS | {"num_local_experts": 5, "intermediate_size": 24, "head_dim": 16, "sliding_window": WINDOW}
    # Bounds that bind.
    base |= {"swiglu_limit": 0.8, "rope_parameters": YARN_BY_HAND}
    return {
        "implied": {
            "config": base,
            "off": {
                "window": {"sliding_window": 100},
                "limit": {"swiglu_limit": 7.0},
                "slope": {"swiglu_alpha": 1.0},
                "attention_bias": {"attention_bias": False},
                "rope": {"rope_parameters": DEFAULT},
            },
        },
        "explicit": {
            "config": base | {"layer_types": [ONE, TWO, TWO, ONE], "attention_bias": False},
            "off": {"layer_types": {"layer_types": [TWO, ONE, TWO, ONE]}},
        },
    }


FAMILIES = {
    "llama": ("LlamaForCausalLM", llama),
    "nemotron": ("NemotronForCausalLM", nemotron),
    "nemotron_h": ("NemotronHForCausalLM", nemotron_h),
    "bamba": ("BambaForCausalLM", bamba),
    "gpt2": ("GPT2LMHeadModel", gpt2),
    "bert": ("BertForMaskedLM", bert),
    "qwen2": ("Qwen2ForCausalLM", qwen2),
    "qwen3": ("Qwen3ForCausalLM", qwen3),
    "qwen3_moe": ("Qwen3MoeForCausalLM", qwen3_moe),
    "qwen2_moe": ("Qwen2MoeForCausalLM", qwen2_moe),
    "mixtral": ("MixtralForCausalLM", mixtral),
    "olmoe": ("OlmoeForCausalLM", olmoe),
    "gpt_oss": ("GptOssForCausalLM", gpt_oss),
    "mistral": ("MistralForCausalLM", mistral),
    "ministral": ("MinistralForCausalLM", ministral),
    "ministral3": ("Ministral3ForCausalLM", ministral3),
    "gemma2": ("Gemma2ForCausalLM", gemma2),
    "gemma3_text": ("Gemma3ForCausalLM", gemma3_text),
    "gemma3": ("Gemma3ForConditionalGeneration", gemma3),
    "phi3": ("Phi3ForCausalLM", phi3),
    "olmo2": ("Olmo2ForCausalLM", olmo2),
    "olmo3": ("Olmo3ForCausalLM", olmo3),
    "smollm3": ("SmolLM3ForCausalLM", smollm3),
    "granite": ("GraniteForCausalLM", granite),
    "gpt_neox": ("GPTNeoXForCausalLM", gpt_neox),
    "starcoder2": ("Starcoder2ForCausalLM", starcoder2),
    "roberta": ("RobertaForMaskedLM", roberta),
    "distilbert": ("DistilBertForMaskedLM", distilbert),
    "modernbert": ("ModernBertForMaskedLM", modernbert),
}


def variants():
    """(family, variant, class, description) of each."""
    for family, (class_name, make) in FAMILIES.items():
        for variant, what in make().items():
            yield family, variant, what.get("class", class_name), what
