//! Where a streamed pass keeps what it is not working on: activations of all batches before one
//! layer, and what the scorers saw so far.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::forward::{BatchState, ForwardPlan};
use minitron_core::calibrate::Calibration;
use minitron_core::checkpoint::TensorSource;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::model::{Frame, LoadOptions};
use minitron_core::output::{sync_tree, write_atomic};
use minitron_core::spec::{HIDDEN, ModelSpec};
use minitron_core::windows::Task;

/// A model that is read one layer at a time.
#[derive(Clone, Copy)]
pub struct Streamed<'a> {
    /// Its tensors.
    pub source: &'a dyn TensorSource,
    /// Its description.
    pub spec: &'a ModelSpec,
    /// Where and in what it computes.
    pub options: LoadOptions,
    /// Where activations wait.
    pub activations: &'a ActivationStore,
}

impl Streamed<'_> {
    /// Embeddings of the tokens that occur, and the head where something is predicted.
    pub(super) fn frame(&self, input: &Calibration, forward: &ForwardPlan) -> Result<Frame> {
        let mut tokens: BTreeSet<u32> = BTreeSet::new();
        for window in 0..input.windows.len() {
            tokens.extend(input.windows.window(window)?);
        }
        if let Some(Task::Masked { mask, .. }) = input.task {
            tokens.insert(mask);
        }
        Frame::open(
            self.source,
            self.spec,
            self.options,
            &tokens,
            forward.predicts(),
        )
    }

    pub(super) fn n_embed(&self) -> i64 {
        self.spec.size(HIDDEN) as i64
    }
}

/// How far a pass has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// Ways through the model that are behind it.
    #[serde(rename = "route")]
    pub forward: usize,
    /// Layer that all batches have reached on the way under way; none before the embeddings.
    pub layer: Option<usize>,
}

/// What stands in `progress.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ProgressRecord {
    inputs: String,
    #[serde(rename = "mark")]
    reached: Reached,
    /// Numbers per scorer in the state file.
    lens: Vec<usize>,
}

/// A folder beside the scores that holds a streamed pass under way; removed when it is done.
#[derive(Debug)]
pub struct ActivationStore {
    dir: PathBuf,
    inputs: String,
}

const PROGRESS: &str = "progress.json";

impl ActivationStore {
    /// Opens the folder, or makes it; what another pass left in it is thrown away.
    ///
    /// `inputs` is a digest of all that the scores follow from.
    pub fn open(dir: &Path, inputs: String) -> Result<Self> {
        let activations = ActivationStore {
            dir: dir.to_path_buf(),
            inputs,
        };
        if dir.exists() && activations.record().is_none() {
            fs::remove_dir_all(dir).at_path(dir)?;
        }
        fs::create_dir_all(dir).at_path(dir)?;
        Ok(activations)
    }

    /// Layer at which an earlier run of the same pass stopped.
    pub fn reached(&self) -> Option<usize> {
        self.record().and_then(|record| record.reached.layer)
    }

    fn record(&self) -> Option<ProgressRecord> {
        let text = read_text(&self.dir.join(PROGRESS)).ok()?;
        let record: ProgressRecord = serde_json::from_str(&text).ok()?;
        (record.inputs == self.inputs).then_some(record)
    }

    /// How far the pass had come, and what its scorers had seen.
    pub(super) fn resume(&self) -> Result<(Reached, Vec<Vec<f64>>)> {
        let Some(record) = self.record() else {
            return Ok((Reached::default(), Vec::new()));
        };
        let path = self.state_path(&record.reached);
        Ok((record.reached, rows_of(&path, record.lens)?))
    }

    fn state_path(&self, reached: &Reached) -> PathBuf {
        self.dir.join(format!(
            "state-{}-{}",
            reached.forward,
            reached.layer.map_or(0, |layer| layer + 1)
        ))
    }

    fn layer_dir(&self, reached: &Reached, layer_idx: usize) -> PathBuf {
        self.dir
            .join(format!("layer-{}-{layer_idx}", reached.forward))
    }

    /// Makes a place reached the one to go on from, then frees what lies behind it.
    pub(super) fn commit(&self, reached: Reached, state: &[Vec<f64>]) -> Result<()> {
        let path = self.state_path(&reached);
        write_atomic(&path, bytes_of(state))?;
        if let Some(dir) = reached
            .layer
            .map(|layer_idx| self.layer_dir(&reached, layer_idx))
            .filter(|dir| dir.exists())
        {
            sync_tree(&dir)?;
        }
        let before = self.record();
        let record = ProgressRecord {
            inputs: self.inputs.clone(),
            reached,
            lens: state.iter().map(Vec::len).collect(),
        };
        let text = serde_json::to_string(&record)
            .map_err(|e| Error::Internal(format!("progress: {e}")))?;
        write_atomic(&self.dir.join(PROGRESS), text)?;
        if let Some(ProgressRecord { reached: old, .. }) = before {
            let path = self.state_path(&old);
            fs::remove_file(&path).at_path(&path)?;
            // Before the first layer of a way there is nothing but what the next one is about.
            if let Some(dir) = old
                .layer
                .map(|layer_idx| self.layer_dir(&old, layer_idx))
                .filter(|dir| dir.exists())
            {
                fs::remove_dir_all(&dir).at_path(&dir)?;
            }
        }
        Ok(())
    }

    /// Keeps what each of this rank's batches showed at a layer, until all ranks are through.
    pub(super) fn put_parts(&self, way: usize, layer_idx: usize, kept: &[Vec<f64>]) -> Result<()> {
        let lens: Vec<usize> = kept.iter().map(Vec::len).collect();
        let text = serde_json::to_string(&lens)
            .map_err(|e| Error::Internal(format!("lengths of parts: {e}")))?;
        let path = self.parts_path(way, layer_idx);
        write_atomic(&path, bytes_of(kept))?;
        write_atomic(&path.with_extension("json"), text)
    }

    /// Reads it back.
    pub(super) fn parts(&self, way: usize, layer_idx: usize) -> Result<Vec<Vec<f64>>> {
        let path = self.parts_path(way, layer_idx);
        let about = path.with_extension("json");
        let text = read_text(&about).at_path(&about)?;
        let lens = serde_json::from_str(&text).map_err(|_| cut_off(&path))?;
        rows_of(&path, lens)
    }

    fn parts_path(&self, way: usize, layer_idx: usize) -> PathBuf {
        self.dir.join(format!("parts-{way}-{layer_idx}"))
    }

    /// Writes a batch's streams down as they stand before a layer.
    pub(super) fn put(
        &self,
        reached: &Reached,
        layer_idx: usize,
        number: usize,
        state: &BatchState,
    ) -> Result<()> {
        let dir = self.layer_dir(reached, layer_idx);
        fs::create_dir_all(&dir).at_path(&dir)?;
        let path = dir.join(number.to_string());
        let mut file = fs::File::create(&path).at_path(&path)?;
        for tensor in state
            .recent
            .iter()
            .chain(state.ablated.iter().map(|(_, x_bte)| x_bte))
        {
            let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
            let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
            std::io::Write::write_all(&mut file, &bytes).at_path(&path)?;
        }
        Ok(())
    }

    /// Reads them back.
    pub(super) fn take(
        &self,
        reached: &Reached,
        layer_idx: usize,
        number: usize,
        forward: &ForwardPlan,
        shape: &[i64],
        options: LoadOptions,
    ) -> Result<BatchState> {
        let path = self.layer_dir(reached, layer_idx).join(number.to_string());
        let mut file = fs::File::open(&path).at_path(&path)?;
        let n_bytes = shape.iter().product::<i64>() as usize * options.kind.elt_size_in_bytes();
        let mut bytes = vec![0; n_bytes];
        let (n_recent, runs) = forward.n_streams(layer_idx);
        let mut tensors = Vec::with_capacity(n_recent + runs.len());
        for _ in 0..n_recent + runs.len() {
            std::io::Read::read_exact(&mut file, &mut bytes).at_path(&path)?;
            let tensor = Tensor::f_from_data_size(&bytes, shape, options.kind)?;
            tensors.push(tensor.f_to_device(options.device)?);
        }
        let ablated = tensors.split_off(n_recent);
        Ok(BatchState {
            recent: tensors,
            ablated: runs.into_iter().zip(ablated).collect(),
        })
    }

    /// The pass is done.
    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).at_path(&self.dir)
    }
}

fn bytes_of(rows: &[Vec<f64>]) -> Vec<u8> {
    let numbers = rows.iter().flatten();
    numbers.flat_map(|number| number.to_le_bytes()).collect()
}

/// Rows of so many numbers each, from a file.
fn rows_of(path: &Path, lens: Vec<usize>) -> Result<Vec<Vec<f64>>> {
    let bytes = fs::read(path).at_path(path)?;
    let mut numbers = bytes
        .chunks_exact(8)
        .map(|chunk| f64::from_le_bytes(chunk.try_into().unwrap_or_default()));
    let rows: Vec<Vec<f64>> = lens
        .iter()
        .map(|&len| numbers.by_ref().take(len).collect())
        .collect();
    if rows.iter().map(Vec::len).ne(lens) {
        return Err(cut_off(path));
    }
    Ok(rows)
}

fn cut_off(path: &Path) -> Error {
    Error::checkpoint(path, "cut off; remove the folder and score again")
}
