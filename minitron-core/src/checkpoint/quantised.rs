//! Files whose weights are codes and scales instead of numbers: told from their names, and refused
//! by the format's name.

use safetensors::Dtype;

use super::{Config, TensorSource};

/// How a format is known and turned back.
struct Format {
    name: &'static str,
    /// What stands for the end of a weight's name, or after it.
    marks: &'static [&'static str],
    /// How plain weights are made; `{dir}` is put in.
    way: &'static str,
}

const DEQUANTIZE: &str = "\
    python -c \"from transformers import AutoModelForCausalLM as M; \
    M.from_pretrained('{dir}', device_map='auto').dequantize().save_pretrained('{dir}-plain')\"";
const COMPRESSED: &str = "\
    python -c \"from transformers import AutoModelForCausalLM as M, CompressedTensorsConfig as C; \
    M.from_pretrained('{dir}', quantization_config=C(dequantize=True))\
    .save_pretrained('{dir}-plain')\"";
const FP8: &str = "\
    python -c \"from transformers import AutoModelForCausalLM as M, FineGrainedFP8Config as C; \
    M.from_pretrained('{dir}', quantization_config=C(dequantize=True))\
    .save_pretrained('{dir}-plain')\"";
const MXFP4: &str = "\
    python -c \"from transformers import AutoModelForCausalLM as M, Mxfp4Config as C; \
    M.from_pretrained('{dir}', quantization_config=C(dequantize=True))\
    .save_pretrained('{dir}-plain')\"";
const MLX: &str = "python -m mlx_lm convert --hf-path {dir} --dequantize --mlx-path {dir}-plain";
const ORIGINAL: &str = "take the model that it was quantised from";

/// What several methods write.
const SCALED: &str = "fp8 or int8 with scales";

/// Those with the most particular marks first.
const FORMATS: &[Format] = &[
    Format {
        name: "bitsandbytes, 4 bits",
        marks: &["weight.absmax", "weight.quant_map", "weight.nested_absmax"],
        way: DEQUANTIZE,
    },
    Format {
        name: "bitsandbytes, 8 bits",
        marks: &["SCB", "weight_format"],
        way: DEQUANTIZE,
    },
    Format {
        name: "GPTQ or AWQ",
        marks: &["qweight", "qzeros"],
        way: ORIGINAL,
    },
    Format {
        name: "compressed-tensors",
        marks: &["weight_packed", "weight_shape"],
        way: COMPRESSED,
    },
    Format {
        name: "ModelOpt",
        marks: &["weight_scale_2", "weight_quantizer._amax"],
        way: ORIGINAL,
    },
    Format {
        name: "fp8 with scales a block",
        marks: &["weight_scale_inv"],
        way: FP8,
    },
    Format {
        name: SCALED,
        marks: &["weight_scale"],
        way: ORIGINAL,
    },
    Format {
        name: "MXFP4",
        marks: &["weight_blocks", "weight_scales"],
        way: MXFP4,
    },
    Format {
        name: "HQQ",
        marks: &["W_q"],
        way: ORIGINAL,
    },
    Format {
        name: "quanto",
        marks: &["weight._data", "weight._scale"],
        way: ORIGINAL,
    },
    Format {
        name: "torchao",
        marks: &["weight:qdata", "weight:scale", "weight:_data"],
        way: ORIGINAL,
    },
    Format {
        name: "AQLM",
        marks: &["codes", "codebooks"],
        way: ORIGINAL,
    },
    Format {
        name: "MLX",
        marks: &["scales"],
        way: MLX,
    },
];

/// Why a weight is not there as a number of floating point, and what to do; none where nothing
/// shows that it is a code.
///
/// The weight is one that is missing, or of a type that no plain weight has.
pub fn as_codes(config: &Config, source: &dyn TensorSource, name: &str) -> Option<String> {
    let (stem, _) = name.rsplit_once('.')?;
    let method = config.nested("quantization_config").ok().flatten();
    let method = method
        .as_ref()
        .and_then(|nested| nested.word_or("quant_method", "").ok())
        .unwrap_or_default();
    if let Some((format, mark)) = marked(source, stem) {
        let says = if method.is_empty() {
            String::new()
        } else {
            format!("; config.json says {method}")
        };
        let what = format!("{}: tensor `{stem}.{mark}`{says}", format.name);
        return Some(refusal(config, &what, way(format, method)));
    }
    let dtype = source.info(name)?.dtype;
    let format = match dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => return None,
        _ if !method.is_empty() => method,
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => "fp8",
        _ => return None,
    };
    let what = format!("{format}: tensor `{name}` is {dtype:?}");
    Some(refusal(config, &what, ORIGINAL))
}

/// The format that a tensor beside the weight shows, and its mark.
fn marked(source: &dyn TensorSource, stem: &str) -> Option<(&'static Format, &'static str)> {
    for format in FORMATS {
        for mark in format.marks {
            if source.info(&format!("{stem}.{mark}")).is_some() {
                return Some((format, mark));
            }
        }
    }
    None
}

fn refusal(config: &Config, what: &str, way: &str) -> String {
    let dir = config.path().parent().unwrap_or(config.path()).display();
    let way = way.replace("{dir}", &dir.to_string());
    format!("the weights are quantised ({what}), plain ones are read: {way}")
}

/// Scales beside codes are what several methods write, of which `transformers` turns two back.
fn way(format: &Format, method: &str) -> &'static str {
    match method {
        "fp8" if format.name == SCALED => FP8,
        "compressed-tensors" if format.name == SCALED => COMPRESSED,
        _ => format.way,
    }
}
