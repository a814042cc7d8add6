//! What follows from sizes alone, before any reconstruction.

use super::editor::StudentEditor;
use crate::error::Result;
use crate::mixers::Rescale;
use crate::spec::{At, HIDDEN, Param, ParamKind, ROPE_PAIRS, Role};

impl StudentEditor<'_> {
    pub(super) fn compensate(&mut self) -> Result<()> {
        self.compensate_embedding()?;
        self.compensate_heads()
    }

    /// Whether anything was.
    pub fn is_compensated(&self) -> bool {
        !self.compensated.is_empty()
    }

    /// What was compensated, in words.
    pub fn compensated(&self) -> &[&'static str] {
        &self.compensated
    }

    /// The factor by which a norm's gain grew since what its input lost was taken for zero.
    pub fn assumed(&self, at: At, role: Role) -> f64 {
        self.assumed.get(&(at, role)).copied().unwrap_or(1.0)
    }

    /// Where the family multiplies embeddings by sqrt(hidden), fewer channels shrink them against
    /// what layers add: with H channels of which h stay, the table is multiplied by sqrt(H/h), and
    /// where it makes the logits too, the final norm's gain by sqrt(h/H).
    fn compensate_embedding(&mut self) -> Result<()> {
        let (full, kept) = (self.teacher_spec().size(HIDDEN), self.spec().size(HIDDEN));
        if !self.spec().options.embedding.scales_with_hidden || full == kept {
            return Ok(());
        }
        let factor = (full as f64 / kept.max(1) as f64).sqrt();
        self.scale(At::Model, Role::TOKEN_EMBEDDING, factor)?;
        if self.spec().options.tied {
            self.scale(At::Model, Role::FINAL_NORM, 1.0 / factor)?;
        }
        self.compensated
            .push("embeddings x sqrt(hidden of the source / hidden)");
        Ok(())
    }

    /// What narrower heads rescale, as their mixers say.
    fn compensate_heads(&mut self) -> Result<()> {
        let full = self.teacher_spec().size(ROPE_PAIRS);
        let kept = self.spec().size(ROPE_PAIRS);
        if full == kept {
            return Ok(());
        }
        let mut found: Vec<(At, Rescale)> = Vec::new();
        for layer in 0..self.n_layers() {
            let parts = self.teacher_spec().sublayers(self.source_layer(layer));
            for (source, part) in parts.filter(|(at, _)| self.is_there(at.in_layer(layer))) {
                found.extend(
                    part.mixer
                        .rescales(ROPE_PAIRS, kept)
                        .into_iter()
                        .map(|of| (source.in_layer(layer), of)),
                );
            }
        }
        for (
            at,
            Rescale {
                role,
                factor,
                assumes_zeros,
            },
        ) in found
        {
            self.scale(at, role, factor)?;
            if assumes_zeros {
                *self.assumed.entry((at, role)).or_insert(1.0) *= factor;
            }
        }
        self.compensated
            .push("heads for the channels that they lost");
        Ok(())
    }

    /// What a weight was multiplied by, replaced since or not.
    pub(super) fn factor_of(&self, name: &str) -> f64 {
        let factor = self.factors.get(name).or(self.in_weights.get(name));
        factor.copied().unwrap_or(1.0)
    }

    /// A replaced weight has its factor in it.
    pub(super) fn settle_factor(&mut self, name: &str) {
        if let Some(factor) = self.factors.remove(name) {
            self.in_weights.insert(name.to_owned(), factor);
        }
    }

    /// Multiplies a weight and its bias, or a norm's gain, as they are read.
    fn scale(&mut self, at: At, role: Role, factor: f64) -> Result<()> {
        let param = self.param(at, role, ParamKind::Weight)?;
        if self
            .spec()
            .norm_of(param)
            .is_some_and(|norm| norm.kind.stores_gain_less_one())
        {
            return self.scale_gain(at, role, factor);
        }
        let bias = self.spec().find(at, role, ParamKind::Bias);
        let names: Vec<String> = std::iter::once(param)
            .chain(bias)
            .map(Param::name)
            .collect();
        for name in names {
            let all = self.factors.entry(name).or_insert(1.0);
            *all *= factor;
        }
        // Two that undo each other leave a weight as it is stored.
        self.factors
            .retain(|_, factor| (*factor - 1.0).abs() > 1e-12);
        Ok(())
    }
}
