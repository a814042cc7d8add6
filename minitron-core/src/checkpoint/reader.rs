//! Reads safetensors by memory map: headers are validated on opening, bytes are copied one tensor at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;
use tch::Tensor;

use super::source::{TensorInfo, TensorSource, kind_of};
use crate::error::{Error, IoContext, Result};

/// Name of the weights in a folder with a single file.
pub const SINGLE: &str = "model.safetensors";
/// Name of the table of shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// Mapped pages count as resident until they are released, so copies go in pieces; these also stay in the cache.
pub const PIECE_BYTES: usize = 1 << 20;

/// The tensors of one file or of all shards of a folder.
#[derive(Debug)]
pub struct Reader {
    files: Vec<MappedFile>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    info: TensorInfo,
    start: usize,
    end: usize,
}

/// Rows of a tensor in the map, not yet touched.
struct Stored<'a> {
    file: &'a MappedFile,
    info: &'a TensorInfo,
    start: usize,
    bytes: &'a [u8],
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Reader {
    /// Opens a model folder: the index where there is one, `model.safetensors` otherwise.
    pub fn open(dir: &Path) -> Result<Self> {
        let index_path = dir.join(INDEX);
        if index_path.exists() {
            return Self::open_sharded(dir, &index_path);
        }
        let single = dir.join(SINGLE);
        if !single.exists() {
            return Err(Error::checkpoint(
                dir,
                format!(
                    "no weights; expected {SINGLE} or {INDEX} \
                     (pytorch_model.bin is not read: load and save it once with `transformers`)"
                ),
            ));
        }
        Self::open_file(&single)
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut reader = Reader { files: Vec::new(), entries: BTreeMap::new() };
        reader.add(path, None)?;
        Ok(reader)
    }

    fn open_sharded(dir: &Path, index_path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index_path).at_path(index_path)?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(index_path, format!("expected an object with `weight_map`: {e}")))?;
        let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, shard) in &index.weight_map {
            by_shard.entry(shard).or_default().insert(tensor);
        }
        let mut reader = Reader { files: Vec::new(), entries: BTreeMap::new() };
        for (shard, tensors) in by_shard {
            let path = shard_path(dir, index_path, shard)?;
            reader.add(&path, Some((index_path, &tensors)))?;
        }
        Ok(reader)
    }

    /// Maps a file and adds its tensors; with an index, exactly those that it names.
    fn add(&mut self, path: &Path, wanted: Option<(&Path, &BTreeSet<&str>)>) -> Result<()> {
        let map = map_file(path)?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            Error::checkpoint(
                path,
                format!("not a whole safetensors file ({e}); it may be cut off: fetch or copy it again"),
            )
        })?;
        let data_start = header_len.saturating_add(8);
        for (name, info) in metadata.tensors() {
            if wanted.is_some_and(|(_, names)| !names.contains(name.as_str())) {
                continue;
            }
            let entry = Entry {
                file: self.files.len(),
                info: TensorInfo { dtype: info.dtype, shape: info.shape.clone() },
                start: data_start.saturating_add(info.data_offsets.0),
                end: data_start.saturating_add(info.data_offsets.1),
            };
            self.entries.insert(name, entry);
        }
        if let Some((index_path, names)) = wanted
            && let Some(absent) = names.iter().find(|name| !self.entries.contains_key(**name))
        {
            let message = format!("the index places tensor `{absent}` in {}, which does not hold it", path.display());
            return Err(Error::checkpoint(index_path, message));
        }
        self.files.push(MappedFile { path: path.to_path_buf(), map });
        Ok(())
    }

    /// Where rows of a tensor lie.
    fn stored(&self, name: &str, rows: Range<usize>) -> Result<Stored<'_>> {
        let missing = || Error::Internal(format!("no tensor `{name}`; names are checked against the blueprint first"));
        let entry = self.entries.get(name).ok_or_else(missing)?;
        let file = self.files.get(entry.file).ok_or_else(missing)?;
        let n_rows = entry.info.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > n_rows {
            return Err(Error::Internal(format!("rows {rows:?} of tensor `{name}`, which has {n_rows}")));
        }
        let row_bytes = (entry.end - entry.start) / n_rows.max(1);
        let (start, end) = (entry.start + rows.start * row_bytes, entry.start + rows.end * row_bytes);
        let beyond = || Error::checkpoint(&file.path, format!("tensor `{name}` lies beyond the end of the file"));
        let bytes = file.map.get(start..end).ok_or_else(beyond)?;
        Ok(Stored { file, info: &entry.info, start, bytes })
    }

    /// The weight files, for hashing.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

/// A shard's path, refused when it is absent or would leave the folder.
fn shard_path(dir: &Path, index_path: &Path, shard: &str) -> Result<PathBuf> {
    let mut parts = Path::new(shard).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        let message = format!("names the shard `{shard}`, which is not a plain file name inside the folder");
        return Err(Error::checkpoint(index_path, message));
    }
    let path = dir.join(shard);
    if !path.exists() {
        let message = format!("names the shard `{shard}`, which is not in the folder; fetch the missing file");
        return Err(Error::checkpoint(index_path, message));
    }
    Ok(path)
}

#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).at_path(path)?;
    if !file.metadata().at_path(path)?.is_file() {
        return Err(Error::checkpoint(path, "not a regular file"));
    }
    // SAFETY: the map is read-only and private to this process. A file that another process truncates while it is
    // mapped would end the process with SIGBUS, as with every memory-mapped reader; nothing is undefined before that.
    unsafe { Mmap::map(&file) }.at_path(path)
}

/// The kernel maps whole blocks around a page that is touched; none is larger than this.
const MAPPED_AROUND: usize = 2 << 20;

/// Tells the kernel that a range that was just copied may leave memory, with what was mapped around it.
#[allow(unsafe_code)]
fn release_pages(map: &Mmap, start: usize, len: usize) {
    let base = map.as_ptr() as usize;
    let from = ((base + start) / MAPPED_AROUND * MAPPED_AROUND).saturating_sub(base);
    let to = ((base + start + len).next_multiple_of(MAPPED_AROUND) - base).min(map.len());
    // SAFETY: the map is a read-only file mapping, so dropped pages are read from the file again when touched.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
}

impl TensorSource for Reader {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|entry| entry.info.clone())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let n_rows = rows.len();
        let stored = self.stored(name, rows)?;
        let kind = kind_of(stored.info.dtype).ok_or_else(|| {
            let message = format!("tensor `{name}` has unsupported type {:?}", stored.info.dtype);
            Error::checkpoint(&stored.file.path, message)
        })?;
        let mut shape: Vec<i64> = stored.info.shape.iter().map(|&side| side as i64).collect();
        if let Some(first) = shape.first_mut() {
            *first = n_rows as i64;
        }
        let tensor = Tensor::f_from_data_size(stored.bytes, &shape, kind)?;
        release_pages(&stored.file.map, stored.start, stored.bytes.len());
        Ok(tensor)
    }

    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        let stored = self.stored(name, rows)?;
        let mut start = stored.start;
        for piece in stored.bytes.chunks(PIECE_BYTES) {
            bytes.extend_from_slice(piece);
            release_pages(&stored.file.map, start, piece.len());
            start += piece.len();
        }
        Ok(())
    }
}
