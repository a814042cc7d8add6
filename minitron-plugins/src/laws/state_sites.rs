//! The places that a loss on states compares: both models show them, and channels fit each other.

use std::collections::{HashMap, HashSet};

use minitron_core::contract::{ModelPair, SitePair, StateLoss};
use minitron_core::error::Result;
use minitron_core::model::{Site, Tap};
use minitron_core::prune::Student;
use minitron_core::reconstruct::KeptUnits;
use minitron_core::spec::{ConfigKey, DEPTH};
use tch::Tensor;

use super::samples::half_of_all;
use super::{SampleModel, Trial, random_rankings};

/// A model beside itself and beside a deeper one, of which is not known what one kept of the other.
pub(super) fn strangers(trial: &Trial, loss: &dyn StateLoss, sample: &SampleModel) -> Result<()> {
    let deeper = deeper(trial, sample)?;
    for (student, teacher) in [(sample, sample), (sample, &deeper), (&deeper, sample)] {
        sites(trial, loss, (student, teacher), None)?;
    }
    Ok(())
}

/// A model cut to about half on all axes, beside the whole one.
pub(super) fn relatives(trial: &Trial, loss: &dyn StateLoss, sample: &SampleModel) -> Result<()> {
    let space = sample.space(trial.registry)?;
    let rankings = random_rankings(&sample.groups(trial.registry)?, 33)?;
    let plan = space.plan(&half_of_all(&space), &rankings, &sample.spec)?;
    let student = Student::new(&sample.source, &sample.spec, &plan)?;
    let student = SampleModel::new(trial.registry, &student.config.to_value(), 3)?;
    sites(trial, loss, (&student, sample), Some(&plan.into()))
}

/// The same model with two more layers.
fn deeper(trial: &Trial, sample: &SampleModel) -> Result<SampleModel> {
    let depth = sample.spec.dim(DEPTH)?;
    let mut config = sample.spec.config.to_value();
    let numbers = depth
        .stated
        .iter()
        .filter(|key| matches!(key, ConfigKey::Scalar { .. }));
    numbers.for_each(|key| config[key.path()] = (depth.size + 2).into());
    SampleModel::new(trial.registry, &config, 2)
}

fn sites(
    trial: &Trial,
    loss: &dyn StateLoss,
    (student, teacher): (&SampleModel, &SampleModel),
    kept: Option<&KeptUnits>,
) -> Result<()> {
    let models = ModelPair {
        student: &student.spec,
        teacher: &teacher.spec,
        kept,
    };
    let pairs = loss.pairs(&models)?;
    trial.ensure(!pairs.is_empty(), "it compares nothing")?;
    let of_student = shown(trial, student, pairs.iter().map(|pair| pair.student))?;
    let of_teacher = shown(trial, teacher, pairs.iter().map(|pair| pair.teacher))?;
    for pair in &pairs {
        let (ours, theirs) = (of_student.get(&pair.student), of_teacher.get(&pair.teacher));
        let (Some(&n_ours), Some(&n_theirs)) = (ours, theirs) else {
            continue;
        };
        channels(trial, pair, n_ours, n_theirs)?;
    }
    Ok(())
}

/// Named channels of the teacher are some that it has, one for each of the student's.
fn channels(trial: &Trial, pair: &SitePair, n_ours: usize, n_theirs: usize) -> Result<()> {
    let Some(channels) = &pair.channels else {
        return Ok(());
    };
    let own = pair.student_channels.as_deref();
    let n_shown = own.map_or(n_ours, <[usize]>::len);
    let are_there = channels.iter().all(|&channel| channel < n_theirs)
        && own.is_none_or(|own| own.iter().all(|&channel| channel < n_ours));
    let message = format!(
        "{:?}: {} channels of the teacher's {n_theirs} are named for the student's {n_ours}",
        pair.teacher,
        channels.len()
    );
    trial.ensure(are_there && channels.len() == n_shown, message)
}

/// How many channels the wanted sites have.
fn shown(
    trial: &Trial,
    sample: &SampleModel,
    wanted: impl Iterator<Item = Site>,
) -> Result<HashMap<Site, usize>> {
    let mut seen = ShownSites {
        wanted: wanted.collect(),
        found: HashMap::new(),
    };
    let ids_bt = Tensor::f_from_slice(&[3i64, 5, 7])?.f_view([1, 3])?;
    let _ = sample.load()?.hidden(&ids_bt, &mut seen, None)?;
    let (family, n_layers) = (&sample.spec.architecture, sample.spec.n_layers());
    match (seen.wanted.iter()).find(|site| !seen.found.contains_key(site)) {
        None => Ok(seen.found),
        Some(site) => Err(trial.broken(format!(
            "{site:?}: a site that a `{family}` of {n_layers} layers does not show"
        ))),
    }
}

struct ShownSites {
    wanted: HashSet<Site>,
    found: HashMap<Site, usize>,
}

impl Tap for ShownSites {
    fn wants(&self, site: Site) -> bool {
        self.wanted.contains(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        let width = x.size().last().copied().unwrap_or_default();
        self.found.insert(site, width as usize);
        Ok(())
    }
}
