//! Norms as data.

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · g
    Rms,
    /// RMS norm whose stored gain is g − 1 (Gemma).
    Rms1p,
    /// (x − mean) / std · g + b
    Layer,
    /// Layer norm whose stored gain is g − 1 (Nemotron).
    Layer1p,
}

impl NormKind {
    /// Whether a gain of 1 is stored as 0.
    pub fn stores_gain_less_one(self) -> bool {
        matches!(self, NormKind::Rms1p | NormKind::Layer1p)
    }

    /// Whether it divides by the root of the mean square alone.
    pub fn is_rms(self) -> bool {
        matches!(self, NormKind::Rms | NormKind::Rms1p)
    }
}

/// A norm's kind and the number added to its variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which normalisation.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f64,
}
