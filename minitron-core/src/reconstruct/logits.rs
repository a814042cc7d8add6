//! Logits of a student beside its teacher's, some of the vocabulary at a time. N tokens, V vocab.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::{rows, total};
use super::store::TensorStore;
use crate::calibrate::Calibration;
use crate::checkpoint::TensorSource;
use crate::error::{Error, Present, Result};
use crate::plan::Plan;
use crate::spec::{At, Head, ModelSpec, Param, ParamKind, Role};
use crate::windows::Windows;

/// What both models' heads read behind some of the calibration text.
pub struct LastStates<'a> {
    text: Calibration<'a>,
    windows: Windows,
    /// Of each batch [N, channels].
    teacher: TensorStore,
    student: TensorStore,
    n_batches: usize,
}

/// How far a student is from its teacher where all that its head reads is multiplied by a factor.
/// Means over tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FactorFit {
    /// KL(teacher ‖ student), in nats.
    pub kl: f64,
    /// Its derivative by the factor.
    pub slope: f64,
    /// Its second derivative; where logits are capped, what that is without the cap's curvature.
    pub curvature: f64,
}

/// Elements of a chunk of logits: as many as a matrix product likes, and no more.
const CHUNK: usize = 8 << 20;
/// Rows of a head that are looked at together at most.
const HEAD_ROWS: usize = 4096;

/// Bytes of memory at most where last states wait in a folder: those of a batch
/// of `n_tokens` by teacher (E channels) and student (K), rows of their heads and chunks of logits.
pub fn last_states_bytes(n_tokens: u64, (hidden, kept): (u64, u64), vocab: u64) -> u64 {
    let states = n_tokens * (hidden + kept) * 4;
    // Rows as they are stored and in f32; where they are turned, beside that in f64.
    let rows = vocab.min(HEAD_ROWS as u64) * (hidden + kept) * (4 + 4 + 2 * 8);
    // Logits of both, a derivative, its square, weights, weighed values and one to come.
    let logits = 7 * 4 * (CHUNK as u64).min(n_tokens * vocab);
    states + rows + logits
}

impl<'a> StudentEditor<'a> {
    /// Whether a factor of what the final norm gives multiplies all logits alike, before any cap.
    ///
    /// # Errors
    /// `Recipe` for models without logits, and where no norm with a gain stands right before them,
    /// or a bias is added.
    pub fn check_logit_factor(&self) -> Result<()> {
        let head = self.spec().options.head.as_ref();
        let is_plain = head.is_some_and(|head| head.transform.is_none())
            && !self.has(At::Model, Role::HEAD, ParamKind::Bias);
        if is_plain && self.has(At::Model, Role::FINAL_NORM, ParamKind::Weight) {
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "`{}` multiplies the gain of a norm right before the logits, and this `{}` has none, \
             or a bias behind it; leave it out",
            self.tag,
            self.spec().architecture
        )))
    }

    /// Takes at least `n_tokens` of the calibration text, from windows far apart, through both
    /// models; none of it where all but one layer is the teacher's by agreement.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn last_states(&self, n_tokens: usize) -> Result<Option<LastStates<'a>>> {
        if self.inputs.only.is_some() {
            return Ok(None);
        }
        let _no_grad = tch::no_grad_guard();
        let text = self.calibration()?;
        let n_all = text.windows.len();
        let n_windows = n_tokens
            .div_ceil(text.windows.mean_width().max(1))
            .clamp(1, n_all.max(1));
        let chosen: Vec<usize> = (0..n_windows.min(n_all))
            .map(|idx| idx * n_all / n_windows)
            .collect();
        let windows = text.windows.chosen(&chosen)?;
        let some = Calibration {
            windows: &windows,
            ..text
        };
        let n_layers = self.n_layers() + self.teacher_spec().n_layers();
        text.progress.start("logits, layers", n_layers as u64);
        // As it is stored: a turned teacher says the same, for more work.
        let whole = StudentEditor::new(self.inputs, Plan::default())?;
        let teacher = whole.last(some, false)?;
        let student = self.last(some, true)?;
        text.progress.finish();
        Ok(Some(LastStates {
            text,
            teacher,
            student,
            n_batches: some.own_batches().len(),
            windows,
        }))
    }

    /// What a head reads of each batch.
    fn last(&self, text: Calibration, of_student: bool) -> Result<TensorStore> {
        let streams = self.passed(text, of_student)?;
        let frame = self.frame(of_student, &[0].into(), false)?;
        let name = match of_student {
            true => "student-last",
            false => "teacher-last",
        };
        let mut last = TensorStore::new(self.inputs.spill, name)?;
        for batch in 0..streams.states.len() {
            let now_bte = streams.states.before(0, batch)?.now_bte;
            last.put(&batch.to_string(), &rows(&frame.finish(now_bte)?)?)?;
        }
        Ok(last)
    }
}

impl LastStates<'_> {
    /// How far the student of `editor`, whose last states these are, is from its teacher at a
    /// factor of what its head reads.
    ///
    /// # Errors
    /// As reading a file and tensor operations do.
    pub fn at(&self, editor: &StudentEditor, factor: f64) -> Result<FactorFit> {
        let _no_grad = tch::no_grad_guard();
        let student = editor.student()?;
        let (source, spec) = (editor.inputs.source, editor.inputs.spec);
        let teacher = HeadRows::of(source, spec)?;
        let student = HeadRows::of(&student, editor.spec())?;
        let some = Calibration {
            windows: &self.windows,
            ..self.text
        };
        // The same for every process.
        let n_most = some.batch_size.saturating_mul(self.windows.width()).max(1);
        let n_rows = teacher.n_rows.min(student.n_rows);
        let mut seen: Vec<Compared> = Vec::new();
        seen.resize_with(self.n_batches, Compared::default);
        let step = (CHUNK / n_most).clamp(16, HEAD_ROWS);
        let device = editor.load_options().device;
        for first in (0..n_rows).step_by(step) {
            let rows = first..n_rows.min(first + step);
            let teacher_ve = teacher.read(rows.clone(), device)?;
            let student_vk = student.read(rows, device)?;
            for (batch, seen) in seen.iter_mut().enumerate() {
                let batch = batch.to_string();
                let teacher_ne = self.teacher.read(&batch)?.f_to_device(device)?;
                let student_nk = self.student.read(&batch)?.f_to_device(device)?;
                let teacher_nv = teacher.logits(&teacher_ne, &teacher_ve, 1.0)?.0;
                let student = student.logits(&student_nk, &student_vk, factor)?;
                seen.add(&teacher_nv, student)?;
            }
        }
        let mut sums = [0.0; 4];
        for (round, seen) in seen.iter().enumerate() {
            let of_batch = vec![Tensor::f_from_slice(&seen.sums()?)?];
            some.in_order(round, of_batch, &mut |_, given| {
                let given = Vec::<f64>::try_from(given.first().present("sums of a batch")?)?;
                sums.iter_mut().zip(given).for_each(|(sum, it)| *sum += it);
                Ok(())
            })?;
        }
        let [n_tokens, kl, slope, curvature] = sums;
        let mean = |sum: f64| sum / n_tokens.max(1.0);
        Ok(FactorFit {
            kl: mean(kl),
            slope: mean(slope),
            curvature: mean(curvature),
        })
    }
}

/// What both models expect of a batch.
#[derive(Default)]
struct Compared {
    /// By the teacher: its logits, the student's, and the derivative of those by the factor.
    by_teacher: Expected,
    /// By the student: that derivative, and its square.
    by_student: Expected,
}

impl Compared {
    fn add(&mut self, teacher_nv: &Tensor, student: (Tensor, Tensor)) -> Result<()> {
        let (student_nv, slope_nv) = &student;
        self.by_teacher
            .add(teacher_nv, &[teacher_nv, student_nv, slope_nv])?;
        self.by_student
            .add(student_nv, &[slope_nv, &slope_nv.f_square()?])
    }

    /// Tokens, and Σ of KL and its derivatives.
    fn sums(&self) -> Result<[f64; 4]> {
        let (teacher_n, of_teacher) = self.by_teacher.means()?;
        let (student_n, of_student) = self.by_student.means()?;
        let ([own_n, seen_n, slope_n], [mean_n, square_n]) =
            (of_teacher.as_slice(), of_student.as_slice())
        else {
            return Err(Error::Internal("a vocabulary without tokens".into()));
        };
        let kl_n = own_n.f_sub(seen_n)?.f_sub(&teacher_n)?.f_add(&student_n)?;
        Ok([
            kl_n.numel() as f64,
            total(&kl_n)?,
            total(&mean_n.f_sub(slope_n)?)?,
            total(&square_n.f_sub(&mean_n.f_square()?)?)?,
        ])
    }
}

/// What softmax over a vocabulary expects, for each token, as the vocabulary comes.
#[derive(Default)]
struct Expected {
    /// The largest logit so far.
    most_n: Option<Tensor>,
    /// Σ e^(logit - most), and the same weighing values, in f64.
    sums_n: Vec<Tensor>,
}

impl Expected {
    fn add(&mut self, logits_nv: &Tensor, values: &[&Tensor]) -> Result<()> {
        let here_n = logits_nv.f_amax([-1i64].as_slice(), true)?;
        let most_n = match &self.most_n {
            Some(most_n) => {
                let both_n = most_n.f_maximum(&here_n)?;
                let shrunk_n = most_n.f_sub(&both_n)?.f_to_kind(Kind::Double)?.f_exp()?;
                for sum_n in &mut self.sums_n {
                    *sum_n = sum_n.f_mul(&shrunk_n)?;
                }
                both_n
            }
            None => here_n,
        };
        let weight_nv = logits_nv.f_sub(&most_n)?.f_exp()?;
        let over_vocab = |x: &Tensor| x.f_sum_dim_intlist(-1i64, true, Kind::Double);
        let mut added = vec![over_vocab(&weight_nv)?];
        for value_nv in values {
            added.push(over_vocab(&weight_nv.f_mul(value_nv)?)?);
        }
        self.sums_n = match self.sums_n.is_empty() {
            true => added,
            false => {
                let both = self.sums_n.iter().zip(&added);
                both.map(|(sum_n, it_n)| sum_n.f_add(it_n))
                    .collect::<std::result::Result<_, _>>()?
            }
        };
        self.most_n = Some(most_n);
        Ok(())
    }

    /// log Σ e^logit, and the values' means.
    fn means(&self) -> Result<(Tensor, Vec<Tensor>)> {
        let most_n = self.most_n.as_ref().present("a vocabulary")?;
        let (weight_n, sums_n) = self.sums_n.split_first().present("a vocabulary")?;
        let log_n = weight_n.f_log()?.f_add(most_n)?;
        let mut means_n = Vec::with_capacity(sums_n.len());
        for sum_n in sums_n {
            means_n.push(sum_n.f_div(weight_n)?);
        }
        Ok((log_n, means_n))
    }
}

/// A head that is read a few rows at a time.
struct HeadRows<'s> {
    source: &'s dyn TensorSource,
    weight: &'s Param,
    head: &'s Head,
    n_rows: usize,
}

impl<'s> HeadRows<'s> {
    fn of(source: &'s dyn TensorSource, spec: &'s ModelSpec) -> Result<Self> {
        let role = match spec.options.tied {
            true => Role::TOKEN_EMBEDDING,
            false => Role::HEAD,
        };
        let weight = spec.find(At::Model, role, ParamKind::Weight);
        let weight = weight.present("a head's weight")?;
        let info = source.info(&weight.name());
        Ok(HeadRows {
            source,
            weight,
            head: spec.options.head.as_ref().present("a head")?,
            n_rows: info
                .and_then(|info| info.shape.first().copied())
                .unwrap_or(0),
        })
    }

    /// Some rows in f32.
    fn read(&self, rows: Range<usize>, device: Device) -> Result<Tensor> {
        let stored = self.source.read_rows(&self.weight.name(), rows)?;
        Ok(stored.f_to_device(device)?.f_to_kind(Kind::Float)?)
    }

    /// Logits of x·factor at the ids of these rows, and their derivative by the factor.
    fn logits(&self, x_ne: &Tensor, rows_ve: &Tensor, factor: f64) -> Result<(Tensor, Tensor)> {
        let mut slope_nv = x_ne.f_matmul(&rows_ve.f_transpose(0, 1)?)?;
        if self.head.scale != 1.0 {
            slope_nv = slope_nv.f_mul_scalar(self.head.scale)?;
        }
        let mut logits_nv = match factor == 1.0 {
            true => slope_nv.shallow_clone(),
            false => slope_nv.f_mul_scalar(factor)?,
        };
        if let Some(cap) = self.head.softcap {
            let share_nv = logits_nv.f_div_scalar(cap)?.f_tanh()?;
            slope_nv = slope_nv.f_mul(&share_nv.f_square()?.f_neg()?.f_add_scalar(1.0)?)?;
            logits_nv = share_nv.f_mul_scalar(cap)?;
        }
        Ok((logits_nv, slope_nv))
    }
}
