//! The vocabulary in which an architecture writes its tensors down, one line each.

use super::{At, Param, ParamKind, Part, Role, Side};

/// A side that no axis prunes.
pub fn fixed(n: usize) -> Side {
    Side(vec![Part::Fixed(n)])
}

/// Collects parameters; `prefix` goes before every name.
#[derive(Debug)]
pub struct Table {
    prefix: String,
    at: At,
    unit_of: Option<String>,
    params: Vec<Param>,
}

impl Table {
    /// An empty table; `prefix` is for example `transformer.`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Table {
            prefix: prefix.into(),
            at: At::Model,
            unit_of: None,
            params: Vec::new(),
        }
    }

    /// Rows from here on belong to this part of a layer.
    pub fn part(&mut self, layer: usize, sublayer: usize) -> &mut Self {
        self.at = At::Sublayer { layer, sublayer };
        self.unit_of = None;
        self
    }

    /// Rows from here on belong to one unit of this dim, an expert, in the same part.
    pub fn unit(&mut self, dim: &str, unit: usize) -> &mut Self {
        self.at = self.at.unit(unit);
        self.unit_of = Some(dim.to_owned());
        self
    }

    /// Rows from here on belong to no layer.
    pub fn around(&mut self) -> &mut Self {
        self.at = At::Model;
        self.unit_of = None;
        self
    }

    /// Any tensor, by its whole name without prefix.
    pub fn tensor(
        &mut self,
        name: &str,
        role: Role,
        kind: ParamKind,
        sides: Vec<Side>,
    ) -> &mut Self {
        let template = format!("{}{name}", self.prefix);
        let spec = Param {
            template,
            at: self.at,
            role,
            kind,
            unit_of: self.unit_of.clone(),
            sides,
            transposed: false,
            aliases: Vec::new(),
        };
        self.params.push(spec);
        self
    }

    /// `name.weight` [out | in], and `name.bias` \[out\] where `bias`.
    pub fn linear(
        &mut self,
        name: &str,
        role: Role,
        out: Side,
        input: Side,
        bias: bool,
    ) -> &mut Self {
        self.tensor(
            &format!("{name}.weight"),
            role,
            ParamKind::Weight,
            vec![out.clone(), input],
        );
        if bias {
            self.tensor(&format!("{name}.bias"), role, ParamKind::Bias, vec![out]);
        }
        self
    }

    /// `name.weight` [in | out] and `name.bias` \[out\]: GPT-2's Conv1D.
    pub fn conv1d(&mut self, name: &str, role: Role, out: Side, input: Side) -> &mut Self {
        self.tensor(
            &format!("{name}.weight"),
            role,
            ParamKind::Weight,
            vec![input, out.clone()],
        );
        self.transposed();
        self.tensor(&format!("{name}.bias"), role, ParamKind::Bias, vec![out])
    }

    /// A gain, and a bias where `bias`, under the suffixes that this file uses.
    pub fn norm(
        &mut self,
        name: &str,
        role: Role,
        over: Side,
        suffixes: (&str, Option<&str>),
    ) -> &mut Self {
        self.tensor(
            &format!("{name}.{}", suffixes.0),
            role,
            ParamKind::Weight,
            vec![over.clone()],
        );
        if let Some(bias) = suffixes.1 {
            self.tensor(&format!("{name}.{bias}"), role, ParamKind::Bias, vec![over]);
        }
        self
    }

    /// The last row lies as [in | out].
    pub fn transposed(&mut self) -> &mut Self {
        if let Some(last) = self.params.last_mut() {
            last.transposed = true;
        }
        self
    }

    /// Other whole names under which the last row may lie in the file.
    pub fn also_known_as(&mut self, names: &[&str]) -> &mut Self {
        if let Some(last) = self.params.last_mut() {
            last.aliases
                .extend(names.iter().map(|&name| name.to_owned()));
        }
        self
    }

    /// Rows whose names take no prefix.
    pub fn unprefixed(&mut self, write: impl FnOnce(&mut Table)) -> &mut Self {
        let prefix = std::mem::take(&mut self.prefix);
        write(self);
        self.prefix = prefix;
        self
    }

    /// The rows.
    pub fn finish(self) -> Vec<Param> {
        self.params
    }
}
