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

    /// Overwrites some rows of a tensor that is here; `tensor` has its type. In memory every holder
    /// of that tensor sees it.
    ///
    /// # Errors
    /// `Internal` where there is no such tensor, row or width; `Io` where it cannot be written.
    pub fn put_rows(&mut self, name: &str, rows_n: &Tensor, tensor: &Tensor) -> Result<()> {
        let held = self.held(name)?;
        let rows = held.checked(rows_n)?;
        match &held.place {
            Place::Memory(all) => {
                let rows_n = rows_n.f_to_device(all.device())?;
                let _ = all.shallow_clone().f_index_copy_(0, &rows_n, tensor)?;
            }
            Place::File(path) => {
                let mut bytes = Vec::new();
                append_tensor(&tensor.f_to_device(Device::Cpu)?, &mut bytes)?;
                let n_row_bytes = held.n_row_bytes();
                if bytes.len() != rows.len() * n_row_bytes {
                    let message = format!("rows of another width or type for `{name}`");
                    return Err(Error::Internal(message));
                }
                let file = File::options().write(true).open(path).at_path(path)?;
                for (row, bytes) in rows.into_iter().zip(bytes.chunks(n_row_bytes.max(1))) {
                    let from = (row * n_row_bytes) as u64;
                    file.write_all_at(bytes, from).at_path(path)?;
                }
            }
        }
        Ok(())
    }

    /// Some rows of a tensor that is here.
    ///
    /// # Errors
    /// `Internal` where there is no such tensor or row; `Io` where it cannot be read.
    pub fn read_rows(&self, name: &str, rows_n: &Tensor) -> Result<Tensor> {
        let held = self.held(name)?;
        let rows = held.checked(rows_n)?;
        let path = match &held.place {
            Place::Memory(all) => {
                return Ok(all.f_index_select(0, &rows_n.f_to_device(all.device())?)?);
            }
            Place::File(path) => path,
        };
        let mut shape = held.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len() as i64;
        }
        let n_row_bytes = held.n_row_bytes();
        let mut bytes = vec![0; rows.len() * n_row_bytes];
        let file = File::open(path).at_path(path)?;
        for (row, room) in rows.into_iter().zip(bytes.chunks_mut(n_row_bytes.max(1))) {
            file.read_exact_at(room, (row * n_row_bytes) as u64)
                .at_path(path)?;
        }
        Ok(Tensor::f_from_data_size(&bytes, &shape, held.kind)?)
    }

    fn held(&self, name: &str) -> Result<&Held> {
        let held = self.held.get(name);
        held.ok_or_else(|| Error::Internal(format!("nothing waits as `{name}`")))
    }

    /// Gives back the tensor of a name.
    ///
    /// # Errors
    /// `Internal` where there is none; `Io` where it cannot be read.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let held = self.held(name)?;
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

    fn n_row_bytes(&self) -> usize {
        let of_row: i64 = self.shape.iter().skip(1).product();
        of_row as usize * self.kind.elt_size_in_bytes()
    }

    /// Numbers of rows that are there.
    fn checked(&self, rows_n: &Tensor) -> Result<Vec<usize>> {
        let rows = Vec::<i64>::try_from(&rows_n.f_to_device(Device::Cpu)?)?;
        let is_there = |row: &i64| (0..self.n_rows() as i64).contains(row);
        if let Some(row) = rows.iter().find(|row| !is_there(row)) {
            let message = format!("row {row} of a tensor of {}", self.n_rows());
            return Err(Error::Internal(message));
        }
        Ok(rows.into_iter().map(|row| row as usize).collect())
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
        let n_row_bytes = self.n_row_bytes();
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
            // Rows anywhere, and none.
            let some = Tensor::from_slice(&[5i64, 1]);
            for store in [&mut here, &mut there] {
                let twice = store.read_rows(name, &some).unwrap() * 2;
                store.put_rows(name, &some, &twice).unwrap();
                let none = Tensor::from_slice::<i64>(&[]);
                assert_eq!(store.read_rows(name, &none).unwrap().size(), [0, 4]);
                for wrong in [6i64, -1] {
                    let wrong = Tensor::from_slice(&[wrong, 0]);
                    assert!(store.read_rows(name, &wrong).is_err());
                    assert!(store.put_rows(name, &wrong, &twice).is_err());
                }
                let narrow = twice.narrow(1, 0, 2);
                assert!(store.put_rows(name, &some, &narrow).is_err());
            }
            assert_eq!(there.read(name).unwrap(), here.read(name).unwrap());
        }
        assert!(there.read("d").is_err() && !there.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("x")).unwrap().count(), 3);
    }
}
