//! Which layer of the student is held against which of the teacher.

use std::fmt;
use std::str::FromStr;

use minitron_core::contract::{ModelPair, SitePair};
use minitron_core::error::{Error, Result};
use minitron_core::model::Site;
use minitron_core::spec::ModelSpec;
use serde::{Deserialize, Serialize};

/// Pairs of layers, written `last_but_two`, `last`, `uniform` or `29:13 31:15` (teacher:student,
/// counted from 0).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayerPairs", into = "String")]
pub enum Layers {
    /// The layer that two others follow, of each model: 29:13 with 32 layers in the teacher and 16
    /// in the student.
    #[default]
    LastButTwo,
    /// The last layer of each.
    Last,
    /// Every layer i of the student with layer round((i + 1)·Lt / Ls) − 1 of the teacher, for Ls
    /// and Lt layers.
    Uniform,
    /// These.
    Given(Vec<LayerPair>),
}

/// One layer of each model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPair {
    /// Of the teacher, from 0.
    pub teacher: usize,
    /// Of the student, from 0.
    pub student: usize,
}

/// A list in one string, or as an array of its words.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or an array of strings")]
pub(super) enum LayerPairs {
    Text(String),
    List(Vec<String>),
}

impl LayerPairs {
    /// Words between spaces or plus signs: a comma ends a parameter on the command line.
    pub(super) fn words(self) -> Vec<String> {
        let text = match self {
            LayerPairs::Text(text) => text,
            LayerPairs::List(list) => list.join(" "),
        };
        text.split(|c: char| c.is_whitespace() || c == '+')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

impl FromStr for LayerPair {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once(':')
            .map(|(teacher, student)| (teacher.parse(), student.parse()));
        if let Some((Ok(teacher), Ok(student))) = parts {
            return Ok(LayerPair { teacher, student });
        }
        Err(unreadable(text))
    }
}

fn unreadable(text: &str) -> Error {
    let expected = "last_but_two, last, uniform or pairs teacher:student such as `29:13 31:15`";
    Error::Recipe(format!("layers: expected {expected}, got `{text}`"))
}

impl TryFrom<LayerPairs> for Layers {
    type Error = Error;

    fn try_from(written: LayerPairs) -> Result<Self> {
        let words = written.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["last_but_two"] => Ok(Layers::LastButTwo),
            ["last"] => Ok(Layers::Last),
            ["uniform"] => Ok(Layers::Uniform),
            [] => Err(unreadable("")),
            pairs => pairs
                .iter()
                .map(|pair| pair.parse())
                .collect::<Result<_>>()
                .map(Layers::Given),
        }
    }
}

impl From<Layers> for String {
    fn from(layers: Layers) -> String {
        layers.to_string()
    }
}

impl fmt::Display for LayerPair {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.teacher, self.student)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Layers::LastButTwo => f.write_str("last_but_two"),
            Layers::Last => f.write_str("last"),
            Layers::Uniform => f.write_str("uniform"),
            Layers::Given(pairs) => f.write_str(
                &pairs
                    .iter()
                    .map(LayerPair::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        }
    }
}

impl LayerPair {
    /// Refuses layers that the models do not have.
    fn check(&self, tag: &str, n_student: usize, n_teacher: usize) -> Result<()> {
        for (whose, layer, n_layers) in [
            ("teacher", self.teacher, n_teacher),
            ("student", self.student, n_student),
        ] {
            if layer >= n_layers {
                return Err(Error::Recipe(format!(
                    "{tag}: layers: {self} (teacher:student): the {whose} has no layer {layer}, \
                     its {n_layers} layers are counted from 0"
                )));
            }
        }
        Ok(())
    }
}

impl Layers {
    /// The pairs of models with so many layers.
    ///
    /// # Errors
    /// `Recipe` where a model has no such layer, naming how many it has.
    pub(super) fn of(
        &self,
        tag: &str,
        n_student: usize,
        n_teacher: usize,
    ) -> Result<Vec<LayerPair>> {
        let n_after = match self {
            Layers::LastButTwo => 2,
            Layers::Last => 0,
            Layers::Uniform => {
                let pairs = (0..n_student).map(|layer| uniform(layer, n_student, n_teacher));
                return Ok(pairs.collect());
            }
            Layers::Given(pairs) => {
                for pair in pairs {
                    pair.check(tag, n_student, n_teacher)?;
                }
                return Ok(pairs.clone());
            }
        };
        Ok(vec![LayerPair {
            teacher: self.nth_last(tag, "teacher", n_teacher, n_after)?,
            student: self.nth_last(tag, "student", n_student, n_after)?,
        }])
    }

    /// The layer that has so many after it.
    fn nth_last(&self, tag: &str, whose: &str, n_layers: usize, n_after: usize) -> Result<usize> {
        let wanted = n_after + 1;
        n_layers.checked_sub(wanted).ok_or_else(|| {
            Error::Recipe(format!(
                "{tag}: layers: {self}: expected at least {wanted} layers, the {whose} has \
                 {n_layers}; take `last`"
            ))
        })
    }

    /// A site of each pair of layers; `site` is given a model and one of its layers.
    pub(super) fn pairs(
        &self,
        tag: &str,
        models: &ModelPair,
        site: impl Fn(&ModelSpec, usize) -> Result<Site>,
    ) -> Result<Vec<SitePair>> {
        let ModelPair {
            student, teacher, ..
        } = *models;
        let (n_student, n_teacher) = (student.n_layers(), teacher.n_layers());
        let mut sites = Vec::new();
        for pair in self.of(tag, n_student, n_teacher)? {
            sites.push(SitePair::new(
                site(student, pair.student)?,
                site(teacher, pair.teacher)?,
            ));
        }
        Ok(sites)
    }
}

/// Rounded half up; a teacher with too few layers gives its first to several.
fn uniform(student: usize, n_student: usize, n_teacher: usize) -> LayerPair {
    let n_seen = (2 * (student + 1) * n_teacher + n_student) / (2 * n_student.max(1));
    LayerPair {
        teacher: n_seen.saturating_sub(1),
        student,
    }
}

#[cfg(test)]
mod tests {
    use super::{LayerPair, LayerPairs, Layers};

    fn layers(text: &str) -> minitron_core::error::Result<Layers> {
        Layers::try_from(LayerPairs::Text(text.into()))
    }

    fn pairs(text: &str, n_student: usize, n_teacher: usize) -> String {
        let pairs = layers(text).and_then(|layers| layers.of("tag", n_student, n_teacher));
        pairs.map_or_else(
            |error| error.to_string(),
            |pairs| Layers::Given(pairs).to_string(),
        )
    }

    #[test]
    fn the_papers_pairs() {
        assert_eq!(pairs("last_but_two", 16, 32), "29:13");
        assert_eq!(pairs("last", 16, 32), "31:15");
        assert_eq!(pairs("uniform", 4, 8), "1:0 3:1 5:2 7:3");
        assert_eq!(pairs("uniform", 3, 8), "2:0 4:1 7:2");
        assert_eq!(pairs("uniform", 3, 1), "0:0 0:1 0:2");
        assert_eq!(pairs("29:13 31:15", 16, 32), "29:13 31:15");
        assert_eq!(pairs("29:13+31:15", 16, 32), "29:13 31:15");
        let list = LayerPairs::List(vec!["29:13".into(), "31:15".into()]);
        assert_eq!(
            Layers::try_from(list).unwrap(),
            layers("29:13 31:15").unwrap()
        );
    }

    #[test]
    fn a_layer_that_is_not_there_is_refused_with_how_many_are() {
        let message = pairs("13:29", 16, 32);
        assert!(
            message.contains("the student has no layer 29, its 16 layers"),
            "{message}"
        );
        let message = pairs("last_but_two", 2, 32);
        assert!(
            message.contains("expected at least 3 layers, the student has 2"),
            "{message}"
        );
        assert!(pairs("last", 0, 1).contains("the student has 0"));
    }

    #[test]
    fn what_cannot_be_read_is_answered_with_what_can() {
        for text in ["", "frist", "3", "3:", "a:b", "last uniform"] {
            let error = layers(text).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains("teacher:student"),
                "{text}: {error}"
            );
        }
        assert_eq!(
            "7:3".parse::<LayerPair>().unwrap(),
            LayerPair {
                teacher: 7,
                student: 3
            }
        );
    }
}
