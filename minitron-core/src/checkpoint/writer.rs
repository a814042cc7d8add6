//! Writes safetensors as a stream: the header from shapes alone, then rows in chunks; reading and
//! writing overlap.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use serde_json::json;

use super::companions::copy_companions;
use super::config::Config;
use super::open_file::PIECE_BYTES;
use super::source::{TensorInfo, TensorSource};
use super::stream::{HeaderEntry, n_bytes_of, stream};
use super::weight_files::{INDEX, SINGLE};
use crate::error::{Error, IoContext, Result};
use crate::output::{DirectFile, write_atomic};

/// How a model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// Largest shard, where no tensor is larger; 5 GB, as `transformers` splits, unless stated.
    pub max_shard_bytes: u64,
    /// Bytes read at a time, where no row is longer; two such chunks are held, one read and one
    /// written.
    pub chunk_bytes: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            max_shard_bytes: 5_000_000_000,
            chunk_bytes: 16 << 20,
        }
    }
}

/// Taken beside the chunks: index lists, pieces of rows, a thread.
const ROOM_BESIDE: u64 = 24 << 20;

impl WriteOptions {
    /// The largest chunks, up to the usual ones, that `source` is copied with in so many bytes of
    /// memory.
    ///
    /// # Errors
    /// The bytes needed where the longest row does not fit.
    pub fn within(n_bytes: u64, source: &dyn TensorSource) -> Result<Self, u64> {
        let mut longest = 0;
        for info in source.names().iter().filter_map(|name| source.info(name)) {
            let n_rows = info.shape.first().map_or(1, |&n| n.max(1) as u64);
            longest = longest.max(info.n_bytes().unwrap_or(0) / n_rows);
        }
        let piece = longest.max(PIECE_BYTES as u64);
        let beside = ROOM_BESIDE.saturating_add(piece);
        let chunk_bytes = n_bytes.saturating_sub(beside) / 2;
        if chunk_bytes < piece {
            return Err(beside.saturating_add(piece.saturating_mul(2)));
        }
        let usual = WriteOptions::default();
        Ok(WriteOptions {
            chunk_bytes: usual.chunk_bytes.min(chunk_bytes as usize),
            ..usual
        })
    }
}

/// Writes a model into an existing folder: `config.json`, weights in as many shards as the options
/// ask for, and the companion files of `companions_dir`, where given.
pub fn write_model(
    dir: &Path,
    config: &Config,
    source: &dyn TensorSource,
    companions_dir: Option<&Path>,
    options: WriteOptions,
) -> Result<()> {
    let _span = tracing::info_span!("write", path = %dir.display()).entered();
    let shards = plan_shards(source, options.max_shard_bytes)?;
    if let [names] = shards.as_slice() {
        write_file(&dir.join(SINGLE), source, names, options.chunk_bytes)?;
    } else {
        write_shards(dir, source, &shards, options.chunk_bytes)?;
    }
    config.save(&dir.join("config.json"))?;
    if let Some(from) = companions_dir {
        copy_companions(from, dir)?;
    }
    Ok(())
}

/// Writes one safetensors file with all tensors of `source`.
pub fn write_tensors(path: &Path, source: &dyn TensorSource) -> Result<()> {
    write_tensors_about(path, source, &BTreeMap::new())
}

/// The same with words about the tensors in the file's header.
pub fn write_tensors_about(
    path: &Path,
    source: &dyn TensorSource,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let names = source.names();
    write_laid_out(
        path,
        source,
        lay_out(source, &names, metadata)?,
        WriteOptions::default().chunk_bytes,
    )
}

fn info_of(source: &dyn TensorSource, name: &str) -> Result<(TensorInfo, u64)> {
    let info = source
        .info(name)
        .ok_or_else(|| Error::Internal(format!("no info for tensor `{name}`")))?;
    let n_bytes = info
        .n_bytes()
        .ok_or_else(|| Error::Internal(format!("size of tensor `{name}` overflows")))?;
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

fn write_shards(
    dir: &Path,
    source: &dyn TensorSource,
    shards: &[Vec<String>],
    chunk_bytes: usize,
) -> Result<()> {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (shard_idx, names) in shards.iter().enumerate() {
        let file = format!(
            "model-{:05}-of-{:05}.safetensors",
            shard_idx + 1,
            shards.len()
        );
        write_file(&dir.join(&file), source, names, chunk_bytes)?;
        for name in names {
            total_size += info_of(source, name)?.1;
            weight_map.insert(name, file.clone());
        }
    }
    let path = dir.join(INDEX);
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    write_atomic(&path, format!("{index:#}\n"))
}

fn write_file(
    path: &Path,
    source: &dyn TensorSource,
    names: &[String],
    chunk_bytes: usize,
) -> Result<()> {
    write_laid_out(
        path,
        source,
        lay_out(source, names, &BTreeMap::new())?,
        chunk_bytes,
    )
}

fn write_laid_out(
    path: &Path,
    source: &dyn TensorSource,
    (header, entries): (Vec<u8>, Vec<HeaderEntry>),
    chunk_bytes: usize,
) -> Result<()> {
    let n_bytes = n_bytes_of(&header, &entries);
    let _span = tracing::info_span!("write file", path = %path.display(), n_bytes).entered();
    let mut file = DirectFile::create(path, n_bytes).at_path(path)?;
    stream(&mut file, &header, source, &entries, chunk_bytes)?.at_path(path)?;
    file.sync_all().at_path(path)
}

/// The header's bytes, and the tensors in the order of their data.
fn lay_out<'a>(
    source: &dyn TensorSource,
    names: &'a [String],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<HeaderEntry<'a>>)> {
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let (info, n_bytes) = info_of(source, name)?;
        entries.push((name, info, n_bytes));
    }
    // Wide types first, so that every tensor stays aligned to its element size.
    entries.sort_by(|a, b| {
        b.1.dtype
            .bitsize()
            .cmp(&a.1.dtype.bitsize())
            .then_with(|| a.0.cmp(b.0))
    });

    let mut offset = 0usize;
    let mut table = Vec::with_capacity(entries.len());
    for (name, info, n_bytes) in &entries {
        let end = offset + *n_bytes as usize;
        table.push((
            (*name).clone(),
            RawInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                data_offsets: (offset, end),
            },
        ));
        offset = end;
    }
    let mut text = header_text(table, metadata)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok((header, entries))
}

/// The header as JSON; the crate writes its words in another order every time, so several are put
/// in order here.
fn header_text(
    table: Vec<(String, RawInfo)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let format = ("format".to_owned(), "pt".to_owned());
    let own = HashMap::from([format.clone()]);
    let header = Metadata::new(Some(own), table).map_err(no_header)?;
    if metadata.is_empty() {
        return serde_json::to_vec(&header).map_err(no_header);
    }
    let mut header = serde_json::to_value(&header).map_err(no_header)?;
    let words: BTreeMap<&String, &String> =
        metadata.iter().chain([(&format.0, &format.1)]).collect();
    header["__metadata__"] = json!(words);
    serde_json::to_vec(&header).map_err(no_header)
}

fn no_header(why: impl std::fmt::Display) -> Error {
    Error::Internal(format!("safetensors header: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{self, ErrorKind, Write};

    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::checkpoint::MemorySource;

    /// Takes so many bytes, then fails as a full disk does.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn some_source() -> MemorySource {
        let mut source = MemorySource::default();
        for name in ["a", "b", "c"] {
            source
                .insert(name, &Tensor::ones([10, 4], (Kind::Float, Device::Cpu)))
                .unwrap();
        }
        source
    }

    #[test]
    fn a_disk_that_fills_up_ends_writing_with_its_error() {
        let (source, names) = (some_source(), ["a", "b", "c"].map(str::to_owned));
        let (_, entries) = lay_out(&source, &names, &BTreeMap::new()).unwrap();
        for chunk_bytes in [1, 16, 100, 1 << 20] {
            for room in [0, 16, 200, 479] {
                let error = stream(Full(room), &[], &source, &entries, chunk_bytes)
                    .unwrap()
                    .unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{chunk_bytes} {room}");
            }
            stream(Full(480), &[], &source, &entries, chunk_bytes)
                .unwrap()
                .unwrap();
        }
    }

    /// Announces a tensor that it does not give out.
    struct Broken(MemorySource);

    impl TensorSource for Broken {
        fn names(&self) -> Vec<String> {
            self.0.names()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.info(name)
        }

        fn read_rows(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Tensor> {
            if name == "b" {
                Err(Error::Data("unreadable".into()))
            } else {
                self.0.read_rows(name, rows)
            }
        }
    }

    #[test]
    fn words_about_tensors_come_back_and_stand_in_one_order() {
        let dir = tempfile::tempdir().unwrap();
        let words: BTreeMap<String, String> = (0..8)
            .map(|idx| (format!("key {idx}"), format!("\"value\" {idx}")))
            .collect();
        let write = |name: &str, words: &BTreeMap<String, String>| {
            write_tensors_about(&dir.path().join(name), &some_source(), words).unwrap();
            fs::read(dir.path().join(name)).unwrap()
        };
        assert_eq!(write("one", &words), write("two", &words));
        let reader = crate::checkpoint::Reader::open_file(&dir.path().join("one")).unwrap();
        let found: BTreeMap<String, String> = reader
            .metadata()
            .clone()
            .into_iter()
            .filter(|(key, _)| key != "format")
            .collect();
        assert_eq!((found, reader.names().len()), (words, 3));
        write_tensors(&dir.path().join("plain"), &some_source()).unwrap();
        assert_eq!(
            write("none", &BTreeMap::new()),
            fs::read(dir.path().join("plain")).unwrap()
        );
    }

    #[test]
    fn a_source_that_fails_ends_writing_with_its_error() {
        let (source, names) = (Broken(some_source()), ["a", "b", "c"].map(str::to_owned));
        let (_, entries) = lay_out(&source, &names, &BTreeMap::new()).unwrap();
        for chunk_bytes in [1, 100, 1 << 20] {
            let error = stream(Full(1000), &[], &source, &entries, chunk_bytes).unwrap_err();
            assert_eq!(error.to_string(), "data: unreadable");
        }
    }

    #[test]
    fn memory_decides_about_chunks_up_to_the_usual_ones() {
        let source = some_source();
        let least = WriteOptions::within(0, &source).unwrap_err();
        assert_eq!(
            WriteOptions::within(least, &source).unwrap().chunk_bytes,
            PIECE_BYTES
        );
        assert_eq!(
            WriteOptions::within(u64::MAX, &source),
            Ok(WriteOptions::default())
        );
    }
}
