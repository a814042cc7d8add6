//! Reads safetensors: headers are validated on opening, bytes are read when they are asked for,
//! straight to where they go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::finite::first_not_finite;
use super::mxfp4::{self, Packed};
use super::open_file::{OpenFile, Stored, StoredTensor};
use super::source::{TensorInfo, TensorSource, kind_of};
use super::weight_files::{Remarks, WeightFiles, shard_path, unnamed_shard};
use crate::error::{Error, IoContext, Present, Result};
use crate::files::read_text;

/// The tensors of one file or of all shards of a folder.
#[derive(Debug)]
pub struct Reader {
    files: Vec<OpenFile>,
    entries: BTreeMap<String, StoredTensor>,
    /// Tensors that lie as codes with scales.
    packed: BTreeMap<String, Packed>,
    metadata: BTreeMap<String, String>,
}

/// Contradictions of an index that are said one by one.
const MAX_ODD: usize = 3;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Reader {
    /// Opens the weights of a model folder, those that `transformers` takes.
    pub fn open(dir: &Path) -> Result<Self> {
        let (files, mut remarks) = WeightFiles::of(dir, None)?;
        Self::open_files(dir, &files, &mut remarks)
    }

    /// Opens the weights that were chosen; what is odd about them is added to the remarks.
    pub(super) fn open_files(
        dir: &Path,
        files: &WeightFiles,
        remarks: &mut Remarks,
    ) -> Result<Self> {
        match files {
            WeightFiles::Single(path) => Self::open_file(path),
            WeightFiles::Sharded(index_path) => {
                Ok(Self::open_sharded(dir, index_path, remarks)?.unpacked())
            }
        }
    }

    /// The same with codes and scales read as what they stand for.
    fn unpacked(mut self) -> Self {
        self.packed = mxfp4::taken_out(&mut self.entries);
        self
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut reader = Reader {
            files: Vec::new(),
            entries: BTreeMap::new(),
            packed: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        reader.add(path)?;
        Ok(reader.unpacked())
    }

    /// All tensors of the shards that an index names, as `transformers` reads them: of one in two
    /// shards, the later one.
    fn open_sharded(dir: &Path, index_path: &Path, remarks: &mut Remarks) -> Result<Self> {
        let text = read_text(index_path).at_path(index_path)?;
        let index: Index = serde_json::from_str(&text).map_err(|e| {
            Error::checkpoint(
                index_path,
                format!("expected an object with `weight_map`: {e}"),
            )
        })?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let mut reader = Reader {
            files: Vec::new(),
            entries: BTreeMap::new(),
            packed: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for shard in &shards {
            reader.add(&shard_path(dir, index_path, shard)?)?;
        }
        let odd = reader.oddities(index_path, &index)?;
        remarks.warnings.extend(
            odd.into_iter()
                .map(|odd| format!("{}: {odd}", index_path.display())),
        );
        if let Some(shard) = unnamed_shard(dir, &shards)? {
            let message = format!(
                "{}: leaves out the shard {shard}, which is not read",
                index_path.display()
            );
            remarks.warnings.push(format!(
                "{message}: fetch the index that belongs to the shards, or remove it"
            ));
        }
        Ok(reader)
    }

    /// Where an index and its shards contradict each other.
    ///
    /// # Errors
    /// `Checkpoint` for a tensor that is in none of them.
    fn oddities(&self, index_path: &Path, index: &Index) -> Result<Vec<String>> {
        let mut odd = Vec::new();
        for (name, shard) in &index.weight_map {
            match self.shard_of(name) {
                Some(found) if found == *shard => {}
                Some(found) => odd.push(format!(
                    "tensor `{name}` is read from {found}, not from {shard}"
                )),
                None => {
                    let message = format!(
                        "the index places tensor `{name}` in {shard}, which does not hold it"
                    );
                    return Err(Error::checkpoint(
                        index_path,
                        format!("{message}; fetch both again"),
                    ));
                }
            }
        }
        let n_moved = odd.len();
        odd.truncate(MAX_ODD);
        if n_moved > MAX_ODD {
            odd.push(format!(
                "{} more tensors are read from other shards than it says",
                n_moved - MAX_ODD
            ));
        }
        let beyond: Vec<&String> = self
            .entries
            .keys()
            .filter(|name| !index.weight_map.contains_key(*name))
            .collect();
        if let [first, ..] = beyond.as_slice() {
            odd.push(format!(
                "{} tensors in its shards are not in it and are read, `{first}` first",
                beyond.len()
            ));
        }
        Ok(odd)
    }

    /// Name of the file that holds a tensor.
    fn shard_of(&self, name: &str) -> Option<String> {
        let path = &self.files.get(self.entries.get(name)?.file)?.path;
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    }

    /// Opens a file and adds its tensors.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = OpenFile::open(path)?;
        let (data_start, metadata) = file.header()?;
        self.metadata
            .extend(metadata.metadata().clone().unwrap_or_default());
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = StoredTensor {
                file: self.files.len(),
                info: TensorInfo {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                },
                start: data_start.saturating_add(start as u64),
                n_bytes: end.saturating_sub(start) as u64,
                is_weight: false,
            };
            self.entries.insert(name, entry);
        }
        self.files.push(file);
        Ok(())
    }

    /// Gives tensors other names than the file does.
    pub fn rename(&mut self, names: &BTreeMap<String, String>) {
        for (name, entry) in std::mem::take(&mut self.entries) {
            let name = names.get(&name).cloned().unwrap_or(name);
            self.entries.insert(name, entry);
        }
        for (name, packed) in std::mem::take(&mut self.packed) {
            let name = names.get(&name).cloned().unwrap_or(name);
            self.packed.insert(name, packed);
        }
    }

    /// Says which tensors are weights: reading one that is NaN or infinite is an error from now on.
    pub fn expect_weights(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.is_weight = true;
            }
        }
    }

    /// Where rows of a tensor lie.
    fn stored<'a>(&'a self, name: &'a str, rows: Range<usize>) -> Result<Stored<'a>> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::Internal(format!(
                "no tensor `{name}`; names are checked against the spec first"
            )));
        };
        self.rows_of(name, entry, rows)
    }

    fn rows_of<'a>(
        &'a self,
        name: &'a str,
        entry: &'a StoredTensor,
        rows: Range<usize>,
    ) -> Result<Stored<'a>> {
        let file = self.files.get(entry.file).present("an opened file")?;
        let n_rows = entry.info.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > n_rows {
            return Err(Error::Internal(format!(
                "rows {rows:?} of tensor `{name}`, which has {n_rows}"
            )));
        }
        let row_bytes = entry.n_bytes / n_rows.max(1) as u64;
        let start = entry
            .start
            .saturating_add(row_bytes.saturating_mul(rows.start as u64));
        Ok(Stored {
            name,
            file,
            entry,
            first_row: rows.start,
            start,
            n_bytes: row_bytes as usize * rows.len(),
        })
    }

    fn not_finite(&self, name: &str, packed: &Packed) -> Error {
        let file = self.files.get(packed.scales.file);
        let path = file.map_or(Path::new(""), |file| file.path.as_path());
        let message = format!(
            "tensor `{name}`: its scales give values beyond bf16, or none; fetch the file again"
        );
        Error::checkpoint(path, message)
    }

    /// Rows of a tensor that lies as codes, as bf16.
    fn append_packed(
        &self,
        (name, packed): (&str, &Packed),
        rows: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let mut parts = [Vec::new(), Vec::new()];
        for (part, entry) in parts.iter_mut().zip([&packed.codes, &packed.scales]) {
            let stored = self.rows_of(name, entry, rows.clone())?;
            part.resize(stored.n_bytes, 0);
            stored.file.read(part, stored.start)?;
        }
        let [codes, scales] = &parts;
        packed.unpacked(codes, scales, bytes)
    }

    /// What the files' headers say besides their tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The weight files, for hashing.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

/// A new tensor's memory, to be filled.
#[allow(unsafe_code)]
fn bytes_of(tensor: &mut Tensor, n_bytes: usize) -> &mut [u8] {
    if n_bytes == 0 {
        return &mut [];
    }
    // SAFETY: the tensor is new and contiguous in main memory, `n_bytes` is its size, nothing else
    // refers to it, and it is borrowed as long as the slice is. Any bytes are valid values, so it
    // does not matter what they were before.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), n_bytes) }
}

impl TensorSource for Reader {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.entries.keys().cloned().collect();
        names.extend(self.packed.keys().cloned());
        names.sort_unstable();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let packed = self.packed.get(name).map(|packed| packed.info.clone());
        packed.or_else(|| self.entries.get(name).map(|entry| entry.info.clone()))
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let n_rows = rows.len();
        if let Some(packed) = self.packed.get(name) {
            let mut bytes = Vec::new();
            self.append_rows(name, rows, &mut bytes)?;
            let mut shape: Vec<i64> = packed.info.shape.iter().map(|&side| side as i64).collect();
            if let Some(first) = shape.first_mut() {
                *first = n_rows as i64;
            }
            return Ok(Tensor::f_from_data_size(&bytes, &shape, Kind::BFloat16)?);
        }
        let stored = self.stored(name, rows)?;
        let info = &stored.entry.info;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            let message = format!("tensor `{name}` has unsupported type {:?}", info.dtype);
            Error::checkpoint(&stored.file.path, message)
        })?;
        let mut shape: Vec<i64> = info.shape.iter().map(|&side| side as i64).collect();
        if let Some(first) = shape.first_mut() {
            *first = n_rows as i64;
        }
        let mut tensor = Tensor::f_empty(&shape, (kind, Device::Cpu))?;
        if tensor.numel().saturating_mul(kind.elt_size_in_bytes()) != stored.n_bytes {
            return Err(Error::Internal(format!(
                "tensor `{name}`: {} bytes for {shape:?}",
                stored.n_bytes
            )));
        }
        stored.read(bytes_of(&mut tensor, stored.n_bytes))?;
        Ok(tensor)
    }

    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(packed) = self.packed.get(name) {
            let before = bytes.len();
            self.append_packed((name, packed), rows, bytes)?;
            let new = bytes.get(before..).present("rows that were read")?;
            return match first_not_finite(new, packed.info.dtype) {
                None => Ok(()),
                Some(_) => Err(self.not_finite(name, packed)),
            };
        }
        let stored = self.stored(name, rows)?;
        let before = bytes.len();
        bytes.resize(before.saturating_add(stored.n_bytes), 0);
        stored.read(bytes.get_mut(before..).present("room for rows")?)
    }

    fn append_unchecked(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(packed) = self.packed.get(name) {
            return self.append_packed((name, packed), rows, bytes);
        }
        let stored = self.stored(name, rows)?;
        let before = bytes.len();
        bytes.resize(before.saturating_add(stored.n_bytes), 0);
        stored.file.read(
            bytes.get_mut(before..).present("room for rows")?,
            stored.start,
        )
    }
}
