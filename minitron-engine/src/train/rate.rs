//! The learning rate that a distillation begins with where none is given.

use super::batches::windows_per_pass;
use super::held_out::Evaluation;
use super::objective::Objective;
use super::settings::TrainSettings;
use super::teacher::Teacher;
use crate::data::DataLoader;
use crate::ranks::Ranks;
use minitron_core::error::{Present, Result};
use minitron_core::model::Transformer;
use minitron_core::windows::Task;

/// Tokens that the distance is measured on: its mean is then within a few per cent, its root
/// within half of that.
const TOKENS: u64 = 4096;
/// The rate of a student of one channel, one nat of KL a token away from its teacher.
const SCALE: f64 = 0.0125;
/// Nats of KL a token from which on the rate grows no more.
const FAR: f64 = 2.0;
/// Tokens of a step from which on the rate grows no more.
const STEP: f64 = 2048.0;
/// No rate that follows from a distance is outside of these.
const BOUNDS: (f64, f64) = (1e-5, 3e-3);

/// The learning rate of a run, and the distance that it follows from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StartRate {
    /// Highest rate of the schedule.
    pub lr: f64,
    /// KL of the student to its teacher before the first step, in nats a token; none where the
    /// rate was given, or nothing could be measured.
    pub kl: Option<f64>,
}

impl Default for StartRate {
    fn default() -> Self {
        StartRate::given(TrainSettings::default().lr)
    }
}

impl StartRate {
    /// One that somebody gave.
    pub fn given(lr: f64) -> Self {
        StartRate { lr, kl: None }
    }

    /// `0.0125 · √(min(KL, 2) / width) · ∛(min(tokens of a step, 2048) / 2048)`, between 1e-5 and
    /// 3e-3.
    ///
    /// Where the KL is quadratic in the weights, its root is how far they are to move, and Adam
    /// moves them by the rate a step; far from the teacher it is not. Smaller steps are more, of
    /// gradients that are less sure. Two digits, so that what is shown is what is taken, on every
    /// machine.
    pub fn of_kl(kl: f64, width: usize, tokens_per_step: u64) -> Self {
        let (least, most) = BOUNDS;
        let near = if kl > 0.0 { kl.min(FAR) } else { 0.0 };
        let of_channel = near / (width as f64).max(1.0);
        let of_step = (tokens_per_step as f64).min(STEP) / STEP;
        let lr = (SCALE * of_channel.sqrt() * of_step.cbrt()).clamp(least, most);
        StartRate {
            lr: two_digits(lr),
            kl: Some(kl),
        }
    }
}

fn two_digits(lr: f64) -> f64 {
    format!("{lr:.1e}").parse().unwrap_or(lr)
}

/// The mean of an objective's first loss on logits over the windows that training takes first, in
/// its batches; none where nothing is predicted in them, or the mean is not finite. It is the same
/// on all ranks, and no window is used up.
///
/// # Errors
/// As [`Objective::evaluate`], and of windows beyond the positions of a model.
pub fn mean_at_start(
    subject: (&Transformer, &Objective),
    teacher: &mut (dyn Teacher + '_),
    (loader, task): (&DataLoader, Task),
    settings: &TrainSettings,
    ranks: Ranks,
) -> Result<Option<f64>> {
    let _span = tracing::info_span!("distance at the start").entered();
    let per_step = settings.batch_size.saturating_mul(settings.accumulate);
    let width = loader.mean_width();
    let n_trained = settings
        .schedule(width)
        .n_steps
        .saturating_mul(per_step as u64);
    let n_windows = TOKENS.div_ceil(width.max(1) as u64).min(n_trained);
    let samples = loader.peek(n_windows as usize)?;
    let size = windows_per_pass(settings.batch_size, ranks);
    let passes: Vec<_> = samples.chunks(size).collect();
    let (n_special_tokens, device) = (loader.n_special_tokens(), subject.0.device);
    let batch = |idx: usize| {
        let samples = passes.get(idx).copied().present("windows of a pass")?;
        task.batch_of(samples, n_special_tokens, device)
    };
    let batches = (passes.len(), &batch as &dyn Fn(usize) -> Result<_>);
    let found = Evaluation::over(vec![subject], Some(teacher), batches, ranks)?;
    let mean = found.first().and_then(Evaluation::first_mean);
    Ok(mean.filter(|mean| mean.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lr(kl: f64, width: usize) -> f64 {
        StartRate::of_kl(kl, width, 2048).lr
    }

    #[test]
    fn a_nearer_student_or_a_wider_one_never_gets_a_higher_rate() {
        let kls = [
            0.0, 1e-9, 1e-3, 0.02, 0.05, 0.2, 0.4999, 0.5, 1.3, 40.0, 1e300,
        ];
        let widths = [1, 8, 48, 64, 160, 768, 2048, 4096, 1 << 20];
        for width in widths {
            assert!(
                kls.is_sorted_by(|a, b| lr(*a, width) <= lr(*b, width)),
                "{width}"
            );
        }
        for kl in kls {
            assert!(widths.is_sorted_by(|a, b| lr(kl, *a) >= lr(kl, *b)), "{kl}");
        }
    }

    #[test]
    fn a_rate_is_within_its_bounds_whatever_the_distance() {
        for kl in [
            f64::MIN,
            -1e-9,
            0.0,
            1e-300,
            0.3,
            f64::MAX,
            f64::INFINITY,
            f64::NAN,
        ] {
            for width in [0, 1, 160, usize::MAX] {
                let lr = lr(kl, width);
                assert!((1e-5..=3e-3).contains(&lr), "{kl} {width}: {lr}");
            }
        }
    }

    #[test]
    fn rates_are_those_of_the_table() {
        for (kl, width, expected) in [
            (1.3, 160, 1.1e-3),
            (0.05, 160, 2.2e-4),
            (2.1, 48, 2.6e-3),
            (0.05, 4096, 4.4e-5),
            (1.0, 4096, 2e-4),
        ] {
            assert_eq!(lr(kl, width), expected, "{kl} at {width}");
        }
    }

    #[test]
    fn a_smaller_step_never_gets_a_higher_rate() {
        let lr = |tokens| StartRate::of_kl(1.3, 160, tokens).lr;
        let tokens = [0, 1, 16, 64, 128, 256, 1024, 2048, 4096, u64::MAX];
        assert!(tokens.is_sorted_by(|a, b| lr(*a) <= lr(*b)));
        assert_eq!([256, 1 << 11, 1 << 20].map(lr), [5.6e-4, 1.1e-3, 1.1e-3]);
    }

    #[test]
    fn what_is_shown_is_what_is_taken() {
        for n in 0..500 {
            let lr = lr(1e-4 * f64::from(n), 200);
            assert_eq!(format!("{lr:.1e}").parse::<f64>(), Ok(lr));
        }
    }
}
