//! Neurons that stayed, held against what they were in the teacher.

use std::collections::{BTreeMap, BTreeSet};

use minitron::{alike, registry, some_windows, tiny_llama};
use minitron_core::contract::{ModelPair, StateLoss};
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Port, Site, Transformer};
use minitron_core::plan::Plan;
use minitron_core::prune::Student;
use minitron_core::registry::PluginSpec;
use minitron_core::windows::Task;
use minitron_engine::train::{Counts, InMemoryTeacher, Objective, StateTerm, TermStart, Weight};
use tch::{Device, Kind};

use super::Model;

/// The first layers, and every second neuron from `first` on of each.
fn cut(model: &Model, n_layers: usize, first: usize) -> Plan {
    let neurons = |layer| {
        let n_units = model.spec.dim(&format!("mlp.{layer}")).unwrap().size;
        (first..n_units).step_by(2).collect::<Vec<usize>>()
    };
    let mut kept: BTreeMap<String, Vec<usize>> = (0..n_layers)
        .map(|layer| (format!("mlp.{layer}"), neurons(layer)))
        .collect();
    kept.insert("depth".into(), (0..n_layers).collect());
    for layer in n_layers..model.spec.n_layers() {
        kept.insert(format!("mlp.{layer}"), neurons(layer));
    }
    Plan { kept }
}

/// The loss of a student cut by one plan, and told that it was another.
fn cloned(model: &Model, spec: &str, by: &Plan, told: &Plan) -> Result<f64> {
    let student = Student::new(&model.source, &model.spec, by)?;
    let options = LoadOptions {
        trainable: true,
        ..LoadOptions::default()
    };
    let loaded = Transformer::load(&student.view, &student.spec, options)?;
    let loss = registry().build::<dyn StateLoss>(&spec.parse::<PluginSpec>()?)?;
    let start = TermStart {
        device: Device::Cpu,
        kind: Kind::Float,
        kept: Some(&told.clone().into()),
        seed: 3,
    };
    let (ours, theirs) = (&student.spec, &model.spec);
    let label = "neuron_clone".to_owned();
    let term = StateTerm::new(label, Weight::Fixed(1.0), loss, ours, theirs, start)?;
    let objective = Objective {
        states: vec![term],
        ..Objective::default()
    };
    let teacher = model.load()?;
    // Ids that every family's tiny vocabulary has.
    let windows = some_windows(2, 9, 50, 4)?;
    let batch = Task::NextToken.batch(&windows, &[0, 1], Device::Cpu)?;
    let (mut teacher, counts) = (InMemoryTeacher(&teacher), Counts::of(&batch)?);
    let means = objective.backward(&loaded, Some(&mut teacher), &batch, counts)?;
    Ok(means.terms.first().copied().unwrap_or(f64::NAN))
}

#[test]
fn neurons_whose_layer_reads_what_it_read_are_what_they_were() {
    for config in alike() {
        let model = Model::new(&config, 71).unwrap();
        for spec in ["neuron_clone", "neuron_clone:projections=up"] {
            // One layer reads the embeddings, which nobody cut.
            let one = cut(&model, 1, 0);
            let found = cloned(&model, spec, &one, &one).unwrap();
            assert!(found.abs() < 1e-10, "{spec} of {}: {found}", model.family());
            // Held against their neighbours, they are others.
            let others = cut(&model, 1, 1);
            let found = cloned(&model, spec, &one, &others).unwrap();
            assert!(found > 1e-4, "{spec} of {}: {found}", model.family());
            // A second layer reads what half of the first one's neurons left.
            let two = cut(&model, 2, 0);
            let found = cloned(&model, spec, &two, &two).unwrap();
            assert!(found > 1e-7, "{spec} of {}: {found}", model.family());
        }
    }
}

#[test]
fn every_layer_is_held_against_the_one_that_it_was() {
    let model = Model::new(&tiny_llama(), 72).unwrap();
    let mut plan = cut(&model, 3, 0);
    plan.kept.insert("depth".into(), vec![0, 2]);
    let student = Student::new(&model.source, &model.spec, &plan).unwrap();
    let loss = registry()
        .build::<dyn StateLoss>(&PluginSpec::bare("neuron_clone"))
        .unwrap();
    let models = ModelPair {
        student: &student.spec,
        teacher: &model.spec,
        kept: Some(&plan.clone().into()),
    };
    let mut layers = BTreeSet::new();
    for pair in loss.pairs(&models).unwrap() {
        let (Site::Inside { at, port }, Site::Inside { at: of, .. }) = (pair.student, pair.teacher)
        else {
            panic!("{pair:?}");
        };
        assert!([Port::PRE_ACTIVATION, Port::FACTOR].contains(&port));
        let (layer, of_teacher) = (at.layer().unwrap(), of.layer().unwrap());
        assert_eq!(
            pair.channels.as_ref(),
            plan.kept.get(&format!("mlp.{of_teacher}"))
        );
        layers.insert((layer, of_teacher, port));
    }
    let places: Vec<_> = layers.iter().map(|(a, b, _)| (*a, *b)).collect();
    assert_eq!(places, [(0, 0), (0, 0), (1, 2), (1, 2)]);
}

#[test]
fn what_a_student_kept_has_to_be_known_and_to_fit() {
    let model = Model::new(&tiny_llama(), 73).unwrap();
    let loss = registry()
        .build::<dyn StateLoss>(&PluginSpec::bare("neuron_clone"))
        .unwrap();
    let error = |found: Result<Vec<_>>| -> Error { found.unwrap_err() };
    let unknown = error(loss.pairs(&ModelPair::new(&model.spec, &model.spec)));
    let mut wrong = Plan::default();
    wrong.kept.insert("mlp.1".into(), vec![0, 1]);
    let narrow = error(loss.pairs(&ModelPair {
        kept: Some(&wrong.clone().into()),
        ..ModelPair::new(&model.spec, &model.spec)
    }));
    wrong.kept.insert("depth".into(), vec![0]);
    let shallow = error(loss.pairs(&ModelPair {
        kept: Some(&wrong.clone().into()),
        ..ModelPair::new(&model.spec, &model.spec)
    }));
    for (error, says) in [
        (unknown, "no plan.json of a cut from this teacher"),
        (narrow, "keeps 2 of the teacher's 48 units of `mlp.1`"),
        (shallow, "keeps 1 of the teacher's 3 units of `depth`"),
    ] {
        let text = error.to_string();
        assert!(error.is_usage() && text.contains(says), "{text}");
        assert!(text.contains("name the teacher that it was pruned from"));
    }
}
