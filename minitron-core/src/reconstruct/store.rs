//! Tensors of a reconstruction that wait for their next use, in memory or in a folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::checkpoint::append_tensor;
use crate::error::{Error, IoContext, Present, Result};

/// Tensors by name. Files are taken away by whoever made the folder.
#[derive(Debug, Default)]
pub(super) struct TensorStore {
    dir: Option<PathBuf>,
    held: BTreeMap<String, Held>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Held {
    shape: Vec<i64>,
    kind: Kind,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Tensor),
    File(PathBuf),
}

impl TensorStore {
    /// In memory, or in a folder of its own below `dir`.
    ///
    /// # Errors
    /// `Io` where it cannot be made.
    pub fn new(dir: Option<&Path>, name: &str) -> Result<Self> {
        let dir = dir.map(|dir| dir.join(name));
        if let Some(dir) = &dir {
            fs::create_dir_all(dir).at_path(dir)?;
        }
        Ok(TensorStore {
            dir,
            held: BTreeMap::new(),
        })
    }

    /// Whether nothing was put here.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// One of them, where it is here.
    pub fn get(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Held)> {
        self.held.iter().map(|(name, held)| (name.as_str(), held))
    }

    /// Puts a tensor in the place of that of its name.
    ///
    /// # Errors
    /// `Io` where it cannot be written.
    pub fn put(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let (shape, kind) = (tensor.size(), tensor.f_kind()?);
        let place = match &self.dir {
            None => Place::Memory(tensor.shallow_clone()),
            Some(dir) => {
                let path = match self.held.get(name) {
                    Some(Held {
                        place: Place::File(path),
                        ..
                    }) => path.clone(),
                    _ => dir.join(self.held.len().to_string()),
                };
                let mut bytes = Vec::new();
                append_tensor(&tensor.f_to_device(Device::Cpu)?, &mut bytes)?;
                fs::write(&path, bytes).at_path(&path)?;
                Place::File(path)
            }
        };
        let held = Held { shape, kind, place };
        self.held.insert(name.to_owned(), held);
        Ok(())
    }

    /// Puts one row in the place of that of a tensor that is here, of its type.
    ///
    /// # Errors
    /// `Internal` where there is none; `Io` where it cannot be written.
    pub fn put_row(&mut self, name: &str, row: usize, tensor: &Tensor) -> Result<()> {
        let held = self.held.get(name);
        let held = held.ok_or_else(|| Error::Internal(format!("nothing waits as `{name}`")))?;
        match &held.place {
            Place::Memory(all) => all.f_select(0, row as i64)?.f_copy_(tensor)?,
            Place::File(path) => {
                let mut bytes = Vec::new();
                append_tensor(&tensor.f_to_device(Device::Cpu)?, &mut bytes)?;
                let file = File::options().write(true).open(path).at_path(path)?;
                let from = (row * bytes.len()) as u64;
                file.write_all_at(&bytes, from).at_path(path)?;
            }
        }
        Ok(())
    }

    /// Gives back the tensor of a name.
    ///
    /// # Errors
    /// `Internal` where there is none; `Io` where it cannot be read.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let held = self.held.get(name);
        let held = held.ok_or_else(|| Error::Internal(format!("nothing waits as `{name}`")))?;
        match &held.place {
            Place::Memory(tensor) => Ok(tensor.shallow_clone()),
            Place::File(_) => held.rows(0..held.n_rows()),
        }
    }
}

impl Held {
    /// Side lengths.
    pub fn shape(&self) -> Vec<usize> {
        self.shape.iter().map(|&side| side as usize).collect()
    }

    fn n_rows(&self) -> usize {
        self.shape.first().map_or(1, |&side| side as usize)
    }

    /// Some rows, contiguous.
    ///
    /// # Errors
    /// `Io` where they cannot be read.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        if let Place::Memory(tensor) = &self.place {
            let rows = tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?;
            return Ok(rows.f_contiguous()?);
        }
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len() as i64;
        }
        let mut bytes = Vec::new();
        self.append_rows(rows, &mut bytes)?;
        Ok(Tensor::f_from_data_size(&bytes, &shape, self.kind)?)
    }

    /// Appends them as they are stored.
    ///
    /// # Errors
    /// As [`Held::rows`].
    pub fn append_rows(&self, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        let path = match &self.place {
            Place::Memory(_) => return append_tensor(&self.rows(rows)?, bytes),
            Place::File(path) => path,
        };
        let of_row: i64 = self.shape.iter().skip(1).product();
        let n_row_bytes = of_row as usize * self.kind.elt_size_in_bytes();
        let start = bytes.len();
        bytes.resize(start + rows.len() * n_row_bytes, 0);
        let room = bytes.get_mut(start..).present("room for rows")?;
        let file = File::open(path).at_path(path)?;
        let from = (rows.start * n_row_bytes) as u64;
        file.read_exact_at(room, from).at_path(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // Set-up: what fails here is the test's own fault.
    use super::*;

    #[test]
    fn what_waits_in_a_folder_comes_back_as_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = TensorStore::new(None, "x").unwrap();
        let mut there = TensorStore::new(Some(dir.path()), "x").unwrap();
        for (name, kind) in [("a", Kind::Float), ("b", Kind::BFloat16), ("c", Kind::Half)] {
            let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([6, 4]);
            // Put twice: the later one counts; a transposed one is no row after row.
            for x in [x.ones_like(), x.reshape([4, 6]).transpose(0, 1)] {
                let x = x.to_kind(kind);
                here.put(name, &x).unwrap();
                there.put(name, &x).unwrap();
            }
            assert_eq!(there.read(name).unwrap(), here.read(name).unwrap());
            let rows = |store: &TensorStore| store.get(name).unwrap().rows(2..5).unwrap();
            assert_eq!(rows(&there), rows(&here));
            assert_eq!(there.get(name).unwrap().shape(), [6, 4]);
        }
        assert!(there.read("d").is_err() && !there.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("x")).unwrap().count(), 3);
    }
}
