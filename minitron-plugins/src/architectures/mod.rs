//! Families of transformers, one file each: what differs from a usual decoder or encoder.

mod bert;
mod clients;
mod distilbert;
mod encoder;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod ministral;
mod ministral3;
mod mistral;
mod mistral3;
mod modernbert;
mod nemotron;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod smollm3;
mod starcoder2;
