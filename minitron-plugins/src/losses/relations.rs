//! Queries, keys and values, by choice.

use minitron_core::error::{Error, Result};
use minitron_core::model::{Port, Site};
use minitron_core::spec::ModelSpec;
use serde::{Deserialize, Serialize};

use super::layer_map::LayerPairs;

/// Between what there are relations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Relation {
    const ALL: [Relation; 3] = [Relation::Query, Relation::Key, Relation::Value];

    fn name(self) -> &'static str {
        match self {
            Relation::Query => "query",
            Relation::Key => "key",
            Relation::Value => "value",
        }
    }

    /// Where it is read.
    ///
    /// # Errors
    /// `Recipe` for a layer without attention.
    pub(super) fn site(self, model: &ModelSpec, layer: usize) -> Result<Site> {
        let port = match self {
            Relation::Query => Port::QUERY,
            Relation::Key => Port::KEY,
            Relation::Value => Port::VALUE,
        };
        model.site(layer, port).ok_or_else(|| {
            Error::Recipe(format!(
                "attention_relation: layer {layer} has no attention; name layers that have"
            ))
        })
    }
}

/// A choice of relations, each once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayerPairs", into = "String")]
pub struct Relations(pub(super) Vec<Relation>);

impl Default for Relations {
    fn default() -> Self {
        Relations(Relation::ALL.to_vec())
    }
}

impl From<Relations> for String {
    fn from(relations: Relations) -> String {
        relations
            .0
            .iter()
            .map(|relation| relation.name())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl TryFrom<LayerPairs> for Relations {
    type Error = Error;

    fn try_from(written: LayerPairs) -> Result<Self> {
        let words = written.words();
        let chosen: Vec<Relation> = Relation::ALL
            .into_iter()
            .filter(|relation| words.iter().any(|word| word == relation.name()))
            .collect();
        if chosen.is_empty() || chosen.len() != words.len() {
            let found = words.join(" ");
            return Err(Error::Recipe(format!(
                "relations: expected some of `query key value`, each once, got `{found}`"
            )));
        }
        Ok(Relations(chosen))
    }
}
