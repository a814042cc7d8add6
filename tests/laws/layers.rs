//! Dropped layers merged into those before them.

use std::collections::{BTreeMap, BTreeSet};

use minitron::{alike, families, registry, tiny_llama};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::contract::{ModelPair, StateLoss};
use minitron_core::error::Error;
use minitron_core::model::{Site, Tap};
use minitron_core::reconstruct::{
    ReconstructInputs, Replaced, SeenUnits, StudentEditor, TakenUnits,
};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{At, HEADS, MLP, Param, ParamKind, Role};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::reconstruction::{Ward, distance};
use super::{Model, REORDERED, relative};

/// What a layer of the student stands for, of a teacher of three layers.
const KEPT: [usize; 2] = [0, 2];

/// A model whose layers of these numbers write nothing to the stream.
fn silent(config: &Value, layers: &[usize]) -> Model {
    scaled(config, |layer| {
        f64::from(u8::from(!layers.contains(&layer)))
    })
}

/// A model whose layers write so many times as much to the stream.
fn scaled(config: &Value, factor: impl Fn(usize) -> f64) -> Model {
    with_parts(config, |layer, _| factor(layer))
}

/// The same of single parts.
fn with_parts(config: &Value, factor: impl Fn(usize, usize) -> f64) -> Model {
    let mut model = Model::new(config, 41).unwrap();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap();
        let parts = param.layer().into_iter();
        let mut parts = parts.flat_map(|layer| model.spec.sublayers(layer));
        let part = parts.find(|(at, _)| *at == param.at);
        let writes = part.and_then(|(_, part)| part.mixer.ports().writer);
        let tensor = match writes.is_some_and(|writer| writer.role == param.role) {
            true => {
                let (layer, part) = param.at.place().unwrap();
                tensor * factor(layer, part)
            }
            false => tensor,
        };
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    model
}

/// A student that kept the first and the last layer of three.
fn ward(model: Model) -> Ward {
    let mut ward = Ward::new(model, &[("depth", KEPT.len())]);
    ward.plan.kept.insert("depth".into(), KEPT.into());
    ward
}

/// Whether a layer's parts are of those that can be merged.
fn takes(editor: &StudentEditor) -> bool {
    let mut places = editor.spec().places(0);
    places.any(|(at, _)| editor.can_take(at, 1))
}

fn taken<'e>(editor: &'e StudentEditor<'_>) -> BTreeMap<(usize, &'e str), usize> {
    let units = editor.taken().iter().flat_map(|taken| {
        let units = taken.units.iter();
        units.map(move |(kind, it)| ((taken.from, kind.as_str()), it.units.len()))
    });
    units.collect()
}

/// The kept layer adds nothing, so the dropped one reads what it reads: all units of the dropped one
/// are taken, and the student is the teacher.
#[test]
fn a_layer_that_adds_nothing_becomes_the_one_dropped_behind_it() {
    let mut families_seen = BTreeSet::new();
    for config in alike() {
        // One that adds much would change what the kept layer's MLP reads, and is not merged.
        let ward = ward(scaled(&config, |layer| [0.0, 0.1, 1.0][layer]));
        if !takes(&ward.editor()) {
            continue;
        }
        let editor = ward.treated(&["layer_merge", "least_squares:ridge=1e-7"]);
        let editor = editor.unwrap();
        let family = ward.model.family();
        let taken = taken(&editor);
        assert!(taken.contains_key(&(1, MLP)), "{family}");
        for ((from, kind), n_taken) in taken {
            let all = ward.model.spec.dim(&format!("{kind}.1")).unwrap().size;
            assert_eq!((from, n_taken), (1, all), "{family} {kind}");
        }
        let size = distance(&ward, &ward.editor());
        let left = distance(&ward, &editor);
        // In f32, through a ridge.
        let is_whole = editor
            .spec()
            .places(0)
            .all(|(at, _)| editor.can_take(at, 1));
        assert!(
            left < if is_whole { 1e-6 } else { 0.9 } * size,
            "{family}: {size} to {left}"
        );
        families_seen.insert(family.to_owned());
    }
    assert!(families_seen.len() >= 4, "{families_seen:?}");
}

/// Behind norms after every sum the MLP alone is merged: where nothing stands between two of them,
/// the kept layer's takes all neurons of the dropped one's, and its norm, and the student is the
/// teacher.
#[test]
fn an_mlp_that_adds_nothing_becomes_the_next_one_behind_norms() {
    let mut n_seen = 0;
    for config in families() {
        let mut model = with_parts(&config, |layer, part| match (layer, part) {
            (0, 1) | (1, 0) => 0.0,
            _ => 1.0,
        });
        let norms = model.spec.params.iter();
        let norms: Vec<Param> = norms
            .filter(|it| it.role == Role::SUM_NORM)
            .cloned()
            .collect();
        if norms.is_empty() {
            continue;
        }
        for norm in norms.iter().filter(|it| it.at.place() < Some((1, 1))) {
            let tensor = model.source.read(&norm.name()).unwrap();
            let plain = match norm.kind {
                ParamKind::Weight => tensor.ones_like(),
                ParamKind::Bias => tensor.zeros_like(),
            };
            model.source.insert(norm.name(), &plain).unwrap();
        }
        let ward = ward(model);
        let editor = ward.treated(&["layer_merge", "least_squares"]).unwrap();
        let all = ward.model.spec.dim("mlp.1").unwrap().size;
        assert_eq!(taken(&editor), [((1, MLP), all)].into());
        let (size, left) = (distance(&ward, &ward.editor()), distance(&ward, &editor));
        assert!(
            left < 1e-6 * size,
            "{}: {size} to {left}",
            ward.model.family()
        );
        n_seen += 1;
    }
    assert!(n_seen > 0);
}

/// The dropped layer adds nothing, so none of its units is worth anything.
#[test]
fn nothing_is_taken_of_a_layer_that_adds_nothing() {
    for config in alike() {
        let ward = ward(silent(&config, &[1]));
        let editor = ward.treated(&["layer_merge"]).unwrap();
        assert_eq!(editor.taken(), [], "{}", ward.model.family());
        assert!(editor.is_untouched());
    }
}

/// A first MLP that adds much, and reads little but the token, behind attention of a dropped layer
/// would see something else: its layer stays as it is. Where that attention adds little it takes
/// units.
#[test]
fn a_layer_whose_own_units_would_lose_more_takes_nothing() {
    for (of_attention, of_mlp, is_merged) in [(0.6, 0.3, false), (0.01, 6.0, true)] {
        let model = with_parts(&tiny_llama(), |layer, part| match (layer, part) {
            (0, 0) => 0.02,
            (0, 1) => 3.0,
            (1, 0) => of_attention,
            (1, 1) => of_mlp,
            _ => 1.0,
        });
        let ward = ward(model);
        let editor = ward.treated(&["layer_merge"]).unwrap();
        let taken = editor.taken();
        assert_eq!(!taken.is_empty(), is_merged, "{of_attention}: {taken:?}");
    }
}

/// Layers of random weights change all of the stream, and what a dropped one reads is hardly told by
/// what the one before it reads: then a merged student is about as near as one that is refitted
/// alone. Where layers change the stream little, as trained ones do, a Llama's is nearer.
#[test]
fn merged_layers_are_not_far_behind_where_they_cannot_help() {
    let mut n_seen = 0;
    for config in families() {
        for factor in [0.2, 1.0] {
            let ward = ward(scaled(&config, |_| factor));
            if !takes(&ward.editor()) {
                assert_eq!(ward.treated(&["layer_merge"]).unwrap().taken(), []);
                continue;
            }
            let refitted = distance(&ward, &ward.treated(&["least_squares"]).unwrap());
            let merged = ward.treated(&["layer_merge", "least_squares"]).unwrap();
            let merged = distance(&ward, &merged);
            let family = ward.model.family();
            let bound = if family == "llama" && factor < 1.0 {
                0.9
            } else {
                1.15
            };
            assert!(
                merged < bound * refitted,
                "{family}, times {factor}: {refitted} to {merged}"
            );
            n_seen += 1;
        }
    }
    assert!(n_seen >= 10, "{n_seen}");
}

/// Remembers what writers of some parts read.
#[derive(Default)]
struct Seen(BTreeMap<Site, Tensor>);

impl Tap for Seen {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Inside { .. })
    }

    fn see(&mut self, site: Site, x: &Tensor) -> minitron_core::error::Result<()> {
        self.0.insert(site, x.shallow_clone());
        Ok(())
    }
}

/// ‖W_u·x_u‖², unit after unit, without sums of squares.
#[test]
fn what_a_unit_adds_is_what_its_columns_make_of_its_channels() {
    let ward = ward(scaled(&tiny_llama(), |_| 0.05));
    let editor = ward.editor();
    let spec = &ward.model.spec;
    let places = editor.spec().places(0).map(|(at, _)| at);
    let mut found = BTreeMap::new();
    let look = &mut |seen: SeenUnits| {
        // The kept layer's MLP stands behind the dropped one's attention.
        let is_mlp = seen.at.place().is_some_and(|(_, part)| part == 1);
        assert_eq!(seen.told.is_some(), seen.layer == 1 || is_mlp);
        let told = seen.told.filter(|_| seen.layer == 1);
        if let Some(told) = told {
            assert_eq!(told.all.n_tokens, 24 * 16);
            found.insert(seen.at.in_layer(1), seen.added);
        }
        Ok(())
    };
    editor
        .for_each_units_seen(&places.zip([HEADS, MLP]).collect(), look)
        .unwrap();
    let mut seen = Seen::default();
    let ids_bt = ward.ids();
    let model = ward.model.load().unwrap();
    let _ = model.hidden(&ids_bt, &mut seen, None).unwrap();
    for (at, part) in spec.places(1) {
        let writer = part.mixer.ports().writer.unwrap();
        let site = Site::Inside {
            at,
            port: writer.reads,
        };
        let x_nc = seen.0[&site].flatten(0, 1).to_kind(Kind::Double);
        let param = spec.find(at, writer.role, ParamKind::Weight).unwrap();
        let weight_ec = ward.model.source.read(&param.name()).unwrap();
        let weight_ec = weight_ec.to_kind(Kind::Double);
        let n_units = found[&at].len() as i64;
        let width = x_nc.size()[1] / n_units;
        for (unit, &worth) in found[&at].iter().enumerate() {
            let (from, to) = (unit as i64 * width, (unit as i64 + 1) * width);
            let added_ne = x_nc
                .slice(1, from, to, 1)
                .matmul(&weight_ec.slice(1, from, to, 1).tr());
            let expected = added_ne.square().sum(Kind::Double) / x_nc.size()[0] as f64;
            let expected = expected.double_value(&[]);
            assert!(
                (worth - expected).abs() <= 1e-5 * expected,
                "{at} {unit}: {worth} {expected}"
            );
        }
    }
}

fn some(layer: usize, from: usize, kind: &str, places: &[usize], units: &[usize]) -> TakenUnits {
    let replaced = Replaced {
        places: places.into(),
        units: units.into(),
    };
    TakenUnits {
        layer,
        part: 1,
        from,
        units: [(kind.to_owned(), replaced)].into(),
    }
}

/// Rows of what reads and columns of what writes are the dropped layer's, where units were taken.
#[test]
fn taken_units_bring_their_weights() {
    let ward = ward(Model::new(&tiny_llama(), 44).unwrap());
    let mut editor = ward.editor();
    let (places, units) = ([1usize, 4, 7], [0usize, 2, 47]);
    editor.take_units(some(0, 1, MLP, &places, &units)).unwrap();
    let at = At::Sublayer {
        layer: 0,
        sublayer: 1,
    };
    for param in ward.model.spec.params_in(Some(0)).filter(|it| it.at == at) {
        let Some(side) = param.sides.iter().position(|it| it.dims() == ["mlp.0"]) else {
            continue;
        };
        let of_layer = |layer| {
            let source = at.in_layer(layer);
            let param = ward.model.spec.find(source, param.role, param.kind);
            ward.model.source.read(&param.unwrap().name()).unwrap()
        };
        let own = of_layer(0).to_kind(Kind::Double);
        let other = of_layer(1).to_kind(Kind::Double);
        let found = editor.read(at, param.role, param.kind).unwrap();
        for unit in 0..own.size()[side] {
            let place = places.iter().position(|&place| place as i64 == unit);
            let expected = match place {
                Some(at) => other.select(side as i64, units[at] as i64),
                None => own.select(side as i64, unit),
            };
            assert_eq!(
                found.select(side as i64, unit),
                expected,
                "{} {unit}",
                param.name()
            );
        }
    }
}

#[test]
fn units_that_cannot_be_taken_are_refused() {
    let ward = ward(scaled(&tiny_llama(), |_| 0.05));
    for wrong in [
        some(0, 2, MLP, &[0], &[0]),
        some(1, 1, MLP, &[0], &[0]),
        some(0, 0, MLP, &[0], &[0]),
        some(0, 1, MLP, &[0, 1], &[0]),
    ] {
        let mut editor = ward.editor();
        let error = editor.take_units(wrong.clone()).unwrap_err();
        assert!(matches!(error, Error::Plugin { .. }), "{wrong:?}: {error}");
    }
    for order in [
        ["layer_merge", "layer_merge"],
        ["least_squares", "layer_merge"],
    ] {
        let error = ward.treated(&order).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("name it once"), "{order:?}: {error}");
    }
    let own = ward.treated(&["layer_merge", "least_squares:target=own"]);
    let error = own.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("fitted to the teacher alone"), "{error}");
}

/// `neuron_clone` holds each neuron against what it was, in whichever layer.
#[test]
fn cloning_knows_where_neurons_were() {
    let ward = ward(scaled(&tiny_llama(), |_| 0.05));
    let editor = ward.treated(&["layer_merge"]).unwrap();
    let loss = registry()
        .build::<dyn StateLoss>(&PluginSpec::bare("neuron_clone"))
        .unwrap();
    let kept = editor.kept_units();
    let pairs = loss.pairs(&ModelPair {
        student: editor.spec(),
        teacher: &ward.model.spec,
        kept: Some(&kept),
    });
    let mut by_layer: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut of_dropped = 0;
    for pair in pairs.unwrap() {
        let (Site::Inside { at, .. }, Site::Inside { at: of, .. }) = (pair.student, pair.teacher)
        else {
            panic!("{pair:?}");
        };
        let (layer, of) = (at.layer().unwrap(), of.layer().unwrap());
        let units = pair.channels.unwrap();
        let places = pair.student_channels;
        let places = places.unwrap_or_else(|| (0..units.len()).collect());
        assert_eq!(places.len(), units.len());
        if of == 1 {
            let taken = editor.taken().iter().filter_map(|it| it.units.get(MLP));
            let taken: Vec<&Replaced> = taken.collect();
            assert_eq!(taken[0].places, places);
            assert_eq!(taken[0].units, units);
            of_dropped += 1;
        }
        by_layer.entry(layer).or_default().extend(places);
    }
    assert!(of_dropped > 0);
    for (layer, places) in by_layer {
        let n_neurons = editor.spec().dim(&format!("mlp.{layer}")).unwrap().size;
        assert_eq!(places.len(), n_neurons, "{layer}");
    }
}

/// Narrower heads multiply queries by a factor: of rows that are refitted, and of those that are taken.
#[test]
fn what_narrower_heads_rescale_is_rescaled_where_it_is_replaced() {
    let mut ward = Ward::new(
        Model::new(&tiny_llama(), 48).unwrap(),
        &[("depth", KEPT.len()), ("rope_pairs", 2)],
    );
    ward.plan.kept.insert("depth".into(), KEPT.into());
    let at = At::Sublayer {
        layer: 0,
        sublayer: 0,
    };
    let plain = |compensates| {
        let inputs = ReconstructInputs {
            compensates,
            ..ward.inputs()
        };
        StudentEditor::new(inputs, ward.plan.clone()).unwrap()
    };
    let query = |editor: &StudentEditor| editor.read(at, Role::QUERY, ParamKind::Weight).unwrap();
    let (mut with, mut without) = (plain(true), plain(false));
    let factor = query(&with).abs().sum(Kind::Double) / query(&without).abs().sum(Kind::Double);
    let factor = factor.double_value(&[]);
    assert!((factor - 1.0).abs() > 0.1, "{factor}");
    let n_hidden = ward.model.spec.dim("hidden").unwrap().size as i64;
    let delta_ec = Tensor::ones([n_hidden, n_hidden], (Kind::Double, Device::Cpu)) * 0.01;
    for is_again in [false, true] {
        for editor in [&mut with, &mut without] {
            editor
                .refit_reader(at, Role::QUERY, &delta_ec, is_again)
                .unwrap();
        }
        let expected = query(&without) * factor;
        assert!(relative(&query(&with), &expected) < REORDERED, "{is_again}");
    }
    let heads = Replaced {
        places: vec![0, 1],
        units: vec![2, 3],
    };
    let groups = Replaced {
        places: vec![0],
        units: vec![1],
    };
    for editor in [&mut with, &mut without] {
        let units = [("heads", &heads), ("kv_heads", &groups)];
        let taken = TakenUnits {
            layer: 0,
            part: 0,
            from: 1,
            units: units.map(|(kind, it)| (kind.to_owned(), it.clone())).into(),
        };
        editor.take_units(taken).unwrap();
        let expected = query(editor);
        editor
            .refit_taken_reader(at, Role::QUERY, &(&delta_ec * 0.0), 1)
            .unwrap();
        assert!(relative(&query(editor), &expected) < REORDERED);
    }
    let expected = query(&without) * factor;
    assert!(relative(&query(&with), &expected) < REORDERED);
}
