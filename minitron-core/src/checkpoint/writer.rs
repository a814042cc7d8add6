//! Writes safetensors as a stream: the header from shapes alone, then one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use serde_json::json;
use tch::Tensor;

use super::config::Config;
use super::reader::{INDEX, SINGLE};
use super::source::{TensorInfo, TensorSource};
use crate::error::{Error, IoContext, Result};

/// Largest shard, as `transformers` splits.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Files that travel with a model unchanged: tokenizer, generation and sentence-encoder settings.
const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "token_mappings.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Writes a model into an existing folder: `config.json`, weights in shards of at most `max_shard_bytes`, and the
/// companion files of `companions_dir`, where given.
pub fn write_model(
    dir: &Path,
    config: &Config,
    source: &dyn TensorSource,
    companions_dir: Option<&Path>,
    max_shard_bytes: u64,
) -> Result<()> {
    let shards = plan_shards(source, max_shard_bytes)?;
    if let [names] = shards.as_slice() {
        write_file(&dir.join(SINGLE), source, names)?;
    } else {
        write_shards(dir, source, &shards)?;
    }
    config.save(&dir.join("config.json"))?;
    if let Some(from) = companions_dir {
        copy_companions(from, dir)?;
    }
    Ok(())
}

/// Writes one safetensors file with all tensors of `source`.
pub fn write_tensors(path: &Path, source: &dyn TensorSource) -> Result<()> {
    write_file(path, source, &source.names())
}

fn info_of(source: &dyn TensorSource, name: &str) -> Result<(TensorInfo, u64)> {
    let info = source.info(name).ok_or_else(|| Error::Internal(format!("no info for tensor `{name}`")))?;
    let n_bytes = info.n_bytes().ok_or_else(|| Error::Internal(format!("size of tensor `{name}` overflows")))?;
    Ok((info, n_bytes))
}

fn plan_shards(source: &dyn TensorSource, max_shard_bytes: u64) -> Result<Vec<Vec<String>>> {
    let mut shards = vec![Vec::new()];
    let mut room = max_shard_bytes;
    for name in source.names() {
        let n_bytes = info_of(source, &name)?.1;
        if n_bytes > room && shards.last().is_some_and(|s: &Vec<String>| !s.is_empty()) {
            shards.push(Vec::new());
            room = max_shard_bytes;
        }
        room = room.saturating_sub(n_bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(name);
        }
    }
    Ok(shards)
}

fn write_shards(dir: &Path, source: &dyn TensorSource, shards: &[Vec<String>]) -> Result<()> {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (shard_idx, names) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", shard_idx + 1, shards.len());
        write_file(&dir.join(&file), source, names)?;
        for name in names {
            total_size += info_of(source, name)?.1;
            weight_map.insert(name, file.clone());
        }
    }
    let path = dir.join(INDEX);
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    fs::write(&path, format!("{index:#}\n")).at_path(&path)
}

fn write_file(path: &Path, source: &dyn TensorSource, names: &[String]) -> Result<()> {
    // Wide types first, so that every tensor stays aligned to its element size.
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let (info, n_bytes) = info_of(source, name)?;
        entries.push((name, info, n_bytes));
    }
    entries.sort_by(|a, b| b.1.dtype.bitsize().cmp(&a.1.dtype.bitsize()).then_with(|| a.0.cmp(b.0)));

    let mut offset = 0usize;
    let mut table = Vec::with_capacity(entries.len());
    for (name, info, n_bytes) in &entries {
        let end = offset + *n_bytes as usize;
        table.push((
            (*name).clone(),
            RawInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets: (offset, end) },
        ));
        offset = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("safetensors header: {e}"));
    let metadata = Metadata::new(Some(format), table).map_err(|e| internal(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| internal(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).at_path(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).at_path(path)?;
    out.write_all(&header).at_path(path)?;
    let mut bytes = Vec::new();
    for (name, _, n_bytes) in entries {
        tensor_bytes(&source.read(name)?, n_bytes, name, &mut bytes)?;
        out.write_all(&bytes).at_path(path)?;
    }
    out.flush().at_path(path)?;
    out.get_ref().sync_all().at_path(path)
}

/// The tensor's elements as stored bytes (safetensors and our machines are little-endian).
fn tensor_bytes(tensor: &Tensor, n_bytes: u64, name: &str, bytes: &mut Vec<u8>) -> Result<()> {
    let found = tensor.numel() as u64 * tensor.f_kind()?.elt_size_in_bytes() as u64;
    if found != n_bytes {
        return Err(Error::Internal(format!("tensor `{name}`: {n_bytes} bytes announced, {found} read")));
    }
    bytes.clear();
    bytes.resize(n_bytes as usize, 0);
    tensor.f_contiguous()?.f_copy_data_u8(bytes, tensor.numel())?;
    Ok(())
}

fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for name in COMPANIONS {
        let source = from.join(name);
        if source.is_file() {
            fs::copy(&source, to.join(name)).at_path(&source)?;
        }
    }
    let pooling = Path::new("1_Pooling").join("config.json");
    if from.join(&pooling).is_file() {
        let dir = to.join("1_Pooling");
        fs::create_dir_all(&dir).at_path(&dir)?;
        fs::copy(from.join(&pooling), to.join(&pooling)).at_path(&dir)?;
    }
    Ok(())
}
