use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Port, Site};
use minitron_core::spec::{MLP, ModelSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::Distance;
use super::layer_map::LayerPairs;

const TAG: &str = "neuron_clone";

/// Mean over layers, projections, tokens and kept neurons n of (a_student\[n\] −
/// a_teacher\[kept(n)\])², where a is what the gate and up projections of an MLP give [B, T, F],
/// before the non-linearity and their product; of an MLP without a gate, what its one projection
/// gives.
///
/// The student's plan says which layers and neurons of the teacher it kept, so nothing is lifted
/// and no map is learned. Neurons that a layer took of dropped ones (`layer_merge`) are held
/// against what they were there; each piece of such a layer counts as a layer does. The paper
/// clones attention's projections too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NeuronClone {
    /// Which of `gate up`, between spaces or +; an MLP without a gate has one projection, which
    /// either names.
    #[schemars(with = "String")]
    pub projections: Projections,
}

minitron_core::plugin! {
    StateLoss for NeuronClone {
        tag: "neuron_clone",
        summary: "squared distance between the MLP neurons that stayed and what they were",
        source: "arXiv 2505.12781 (Low-Rank Clone), section 3",
    }
}

/// A projection of an MLP that reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Projection {
    /// The one that is activated.
    Gate,
    /// The one that multiplies it.
    Up,
}

impl Projection {
    const ALL: [Projection; 2] = [Projection::Gate, Projection::Up];

    fn name(self) -> &'static str {
        match self {
            Projection::Gate => "gate",
            Projection::Up => "up",
        }
    }

    /// Where it is seen in a layer; nowhere in one without an MLP.
    fn port(self, model: &ModelSpec, layer: usize) -> Option<Port> {
        let has = |port| model.site(layer, port).is_some();
        match self {
            Projection::Up if has(Port::FACTOR) => Some(Port::FACTOR),
            _ => has(Port::PRE_ACTIVATION).then_some(Port::PRE_ACTIVATION),
        }
    }
}

/// A choice of projections, each once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayerPairs", into = "String")]
pub struct Projections(Vec<Projection>);

impl Default for Projections {
    fn default() -> Self {
        Projections(Projection::ALL.to_vec())
    }
}

impl From<Projections> for String {
    fn from(projections: Projections) -> String {
        let names = projections.0.iter().map(|projection| projection.name());
        names.collect::<Vec<_>>().join(" ")
    }
}

impl TryFrom<LayerPairs> for Projections {
    type Error = Error;

    fn try_from(written: LayerPairs) -> Result<Self> {
        let words = written.words();
        let mut chosen = Projection::ALL.to_vec();
        chosen.retain(|projection| words.iter().any(|word| word == projection.name()));
        if chosen.is_empty() || chosen.len() != words.len() {
            let found = words.join(" ");
            return Err(Error::Recipe(format!(
                "projections: expected some of `gate up`, each once, got `{found}`"
            )));
        }
        Ok(Projections(chosen))
    }
}

impl NeuronClone {
    /// The ports of a layer's projections, each once.
    fn ports(&self, model: &ModelSpec, layer: usize) -> Vec<Port> {
        let of_each = self.projections.0.iter();
        let mut ports: Vec<Port> = of_each
            .filter_map(|projection| projection.port(model, layer))
            .collect();
        ports.dedup();
        ports
    }
}

/// By layer of the teacher, neurons of one of the student's: where they stand, none for all of
/// them, and which they were.
fn pieces(
    models: &ModelPair,
    (layer, of_teacher): (usize, usize),
    kept: Vec<usize>,
) -> Vec<(usize, Option<Vec<usize>>, Vec<usize>)> {
    let taken = models.taken_units(MLP, layer);
    if taken.is_empty() {
        return vec![(of_teacher, None, kept)];
    }
    let is_own = |place: &usize| taken.iter().all(|(_, it)| !it.places.contains(place));
    let (places, units): (Vec<_>, Vec<_>) = kept
        .into_iter()
        .enumerate()
        .filter(|(place, _)| is_own(place))
        .unzip();
    let own = (!places.is_empty()).then_some((of_teacher, Some(places), units));
    let others = taken.iter();
    let others = others.map(|(from, it)| (*from, Some(it.places.clone()), it.units.clone()));
    own.into_iter().chain(others).collect()
}

/// A port of one of the models.
fn site(model: &ModelSpec, whose: &str, layer: usize, port: Port) -> Result<Site> {
    model.site(layer, port).ok_or_else(|| {
        Error::Recipe(format!(
            "{TAG}: layer {layer} of the {whose} has no `{}`; leave this loss out",
            port.0
        ))
    })
}

#[typetag::serde(name = "neuron_clone")]
impl StateLoss for NeuronClone {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let mut pairs = Vec::new();
        for (layer, of_teacher) in models.kept_layers(TAG)?.into_iter().enumerate() {
            for port in self.ports(models.student, layer) {
                let kept = models.kept_units(TAG, MLP, (layer, of_teacher))?;
                for (from, places, units) in pieces(models, (layer, of_teacher), kept) {
                    pairs.push(SitePair {
                        student: site(models.student, "student", layer, port)?,
                        teacher: site(models.teacher, "teacher", from, port)?,
                        channels: Some(units),
                        student_channels: places,
                    });
                }
            }
        }
        match pairs.is_empty() {
            true => Err(Error::Recipe(format!(
                "{TAG}: no layer of the student has an MLP; leave this loss out"
            ))),
            false => Ok(pairs),
        }
    }

    fn projects(&self) -> bool {
        false
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        Distance::Mse.between(TAG, student, teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::tests::assert_is_mean_of;

    #[test]
    fn its_gradient_is_the_one_written_out() {
        assert_is_mean_of(Distance::Mse, &NeuronClone::default());
    }

    #[test]
    fn projections_are_read_by_name() {
        let read = |text: &str| Projections::try_from(LayerPairs::Text(text.into()));
        assert_eq!(read("up").unwrap().0, [Projection::Up]);
        assert_eq!(read("up+gate").unwrap(), Projections::default());
        assert_eq!(String::from(Projections::default()), "gate up");
        for text in ["", "down", "up up"] {
            assert!(read(text).unwrap_err().to_string().contains("`gate up`"));
        }
    }
}
