//! What reconstructions do to a student, and what they may not do.

use minitron::{
    Recorder, axes, families, forward, groups, least_squares, registry, some_ids, some_windows,
    tiny_bert, tiny_gpt_oss, tiny_gpt2, tiny_llama, tiny_nemotron, tiny_neox, with_context,
};
use minitron_core::calibrate::{Alone, Calibration};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::mixers::MAMBA_OUTPUT;
use minitron_core::model::LoadOptions;
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use minitron_core::reconstruct::{
    Moments, ProjectionStats, ReconstructInputs, StudentEditor, Sweep,
};
use minitron_core::registry::{Kind as PluginKind, PluginSpec, Registry};
use minitron_core::spec::{At, HIDDEN, ModelFolder, ParamKind, Role};
use minitron_core::windows::Windows;
use minitron_engine::jobs::{PruneOptions, ReconstructOptions, prune};
use minitron_plugins::laws::random_rankings;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{Model, REORDERED, load, relative};

/// A teacher, its random ranking, a plan and text: everything that an editor borrows.
pub(super) struct Ward {
    pub model: Model,
    registry: Registry,
    rankings: Rankings,
    windows: Windows,
    pub plan: Plan,
}

impl Ward {
    pub fn new(model: Model, sizes: &[(&str, usize)]) -> Self {
        let (registry, groups) = (registry(), groups(&model.spec).unwrap());
        let rankings = random_rankings(&groups, 31).unwrap();
        let sizes = sizes
            .iter()
            .map(|&(kind, size)| (kind.to_owned(), size))
            .collect();
        let space = Space::new(&model.spec, &axes(&registry).unwrap()).unwrap();
        let plan = space.plan(&sizes, &rankings, &model.spec).unwrap();
        Ward {
            model,
            registry,
            rankings,
            windows: some_windows(24, 16, 61, 32).unwrap(),
            plan,
        }
    }

    pub fn of(config: &Value, sizes: &[(&str, usize)]) -> Self {
        Ward::new(Model::new(config, 30).unwrap(), sizes)
    }

    pub fn inputs(&self) -> ReconstructInputs<'_> {
        ReconstructInputs {
            source: &self.model.source,
            spec: &self.model.spec,
            rankings: Some(&self.rankings),
            calibration: Some(Calibration {
                windows: &self.windows,
                task: None,
                batch_size: 8,
                world: &Alone,
                progress: &Silent,
            }),
            options: LoadOptions::default(),
            seed: 0,
            compensates: true,
            spill: None,
            only: None,
        }
    }

    /// The text [B, T].
    pub fn ids(&self) -> Tensor {
        let all = 0..self.windows.len();
        self.windows.batch(all, Device::Cpu).unwrap()
    }

    pub fn editor(&self) -> StudentEditor<'_> {
        StudentEditor::new(self.inputs(), self.plan.clone()).unwrap()
    }

    pub fn treated(&self, reconstructions: &[&str]) -> Result<StudentEditor<'_>> {
        let mut editor = self.editor();
        for reconstruction in reconstructions {
            self.treat(&mut editor, reconstruction)?;
        }
        Ok(editor)
    }

    pub fn treat(&self, editor: &mut StudentEditor, reconstruction: &str) -> Result<()> {
        let spec = reconstruction.parse()?;
        let built = self.registry.build::<dyn Reconstruction>(&spec)?;
        editor.treat(built.as_ref())
    }
}

pub(super) fn logits(editor: &StudentEditor, ids_bt: &Tensor) -> Tensor {
    forward(
        &load(&editor.student().unwrap(), editor.spec()).unwrap(),
        ids_bt,
    )
    .unwrap()
}

/// Mean square difference to the teacher's logits on the calibration text.
pub(super) fn distance(ward: &Ward, editor: &StudentEditor) -> f64 {
    let ids_bt = ward.ids();
    let teacher = forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
    (logits(editor, &ids_bt) - teacher)
        .square()
        .mean(Kind::Double)
        .double_value(&[])
}

/// Whether a reconstruction is one for this family at all.
fn suits(result: Result<StudentEditor>) -> Option<StudentEditor> {
    match result {
        Err(Error::Recipe(_)) => None,
        other => Some(other.unwrap()),
    }
}

#[test]
fn a_plan_that_leaves_whole_dims_out_is_reconstructed_as_one_that_names_them() {
    for config in families() {
        let whole = Ward::of(&config, &[("mlp", 24)]);
        let mut short = Ward::of(&config, &[("mlp", 24)]);
        short.plan.kept.retain(|dim, _| dim.starts_with("mlp."));
        let fitted = least_squares(&config);
        let (whole, short) = (
            whole.treated(&[fitted]).unwrap(),
            short.treated(&[fitted]).unwrap(),
        );
        let (one, other) = (whole.student().unwrap(), short.student().unwrap());
        for name in one.names() {
            assert_eq!(
                one.read(&name).unwrap(),
                other.read(&name).unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn queries_of_a_dropped_key_value_head_are_folded_into_none() {
    // One of two key/value heads goes, the other keeps both its queries: no query has a dropped
    // partner beside it.
    let ward = Ward::of(&tiny_llama(), &[("kv_heads", 1)]);
    let (pruned, merged) = (ward.editor(), ward.treated(&["head_merge"]).unwrap());
    let (one, other) = (pruned.student().unwrap(), merged.student().unwrap());
    for name in one.names() {
        assert_eq!(
            one.read(&name).unwrap(),
            other.read(&name).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_reconstruction_of_a_whole_student_changes_no_byte() {
    for config in families() {
        let ward = Ward::of(&config, &[]);
        for reconstruction in registry().of_kind(PluginKind::Reconstruction) {
            let Some(editor) = suits(ward.treated(&[reconstruction.tag])) else {
                continue;
            };
            let (pruned, view) = (ward.editor(), editor.student().unwrap());
            for name in view.names() {
                let (one, other) = (
                    pruned.student().unwrap().read(&name).unwrap(),
                    view.read(&name).unwrap(),
                );
                assert_eq!(one, other, "{}: {name}", reconstruction.tag);
            }
        }
    }
}

/// Families whose output projections are linear in the residual stream.
pub(super) fn linear_writers() -> Vec<serde_json::Value> {
    families()
        .into_iter()
        .filter(|config| least_squares(config) == "least_squares")
        .collect()
}

/// Sizes that every tiny family can have.
const HALVED: [(&str, usize); 4] = [("hidden", 16), ("heads", 2), ("mlp", 24), ("depth", 2)];

#[test]
fn a_reconstruction_keeps_shapes_and_gives_finite_values() {
    for config in families() {
        let ward = Ward::of(&config, &HALVED);
        for reconstruction in registry().of_kind(PluginKind::Reconstruction) {
            let Some(editor) = suits(ward.treated(&[reconstruction.tag])) else {
                continue;
            };
            let view = editor.student().unwrap();
            editor.spec().check(&view).unwrap();
            for name in view.names() {
                assert!(
                    bool::try_from(view.read(&name).unwrap().isfinite().all()).unwrap(),
                    "{}: {name}",
                    reconstruction.tag
                );
            }
        }
    }
}

/// Streams and new weights that wait in a folder are those that wait in memory.
#[test]
fn what_waits_in_a_folder_is_reconstructed_as_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let treatments = ["auto", "least_squares:target=own", "bias_compensation"];
    for (number, config) in families().into_iter().enumerate() {
        let ward = Ward::of(&config, &HALVED);
        for (which, treatment) in treatments.iter().enumerate() {
            let Some(here) = suits(ward.treated(&[treatment])) else {
                continue;
            };
            let place = folder.path().join(format!("{number}-{which}"));
            let inputs = ReconstructInputs {
                spill: Some(&place),
                only: None,
                ..ward.inputs()
            };
            let mut there = StudentEditor::new(inputs, ward.plan.clone()).unwrap();
            let reconstruction = treatment.parse().unwrap();
            let reconstruction = ward.registry.build::<dyn Reconstruction>(&reconstruction);
            there.treat(reconstruction.unwrap().as_ref()).unwrap();
            let (here, there) = (here.student().unwrap(), there.student().unwrap());
            for name in here.names() {
                assert_eq!(
                    there.read(&name).unwrap(),
                    here.read(&name).unwrap(),
                    "{} {treatment}: {name}",
                    ward.model.family()
                );
            }
        }
    }
}

#[test]
fn least_squares_brings_every_family_nearer_to_its_teacher() {
    for config in linear_writers() {
        for sizes in [
            &[("mlp", 24)][..],
            &[("hidden", 16), ("heads", 2)],
            &[("depth", 2)],
            &HALVED,
        ] {
            let ward = Ward::of(&config, sizes);
            let (pruned, reconstructed) = (
                distance(&ward, &ward.editor()),
                ward.treated(&["least_squares"]).unwrap(),
            );
            let reconstructed = distance(&ward, &reconstructed);
            assert!(
                reconstructed < 0.9 * pruned,
                "{} {sizes:?}: {pruned} to {reconstructed}",
                ward.model.family()
            );
        }
        let ward = Ward::of(&config, &[("mlp", 24)]);
        let own = ward.treated(&["least_squares:target=own"]).unwrap();
        assert!(
            distance(&ward, &own) < distance(&ward, &ward.editor()),
            "{}",
            ward.model.family()
        );
    }
}

/// One map of what a writer gives is a special case of new weights, and the same elsewhere.
#[test]
fn a_map_folded_into_the_writer_before_dropped_layers_repairs_less_than_new_weights() {
    for config in linear_writers() {
        let ward = Ward::of(&config, &[("depth", 2)]);
        let family = ward.model.family();
        let of = |how: &str| {
            let treatment = format!("least_squares:readers=false,ridge=1e-4,{how}");
            let editor = ward.treated(&[&treatment]).unwrap();
            let fits = editor.fits().to_vec();
            (distance(&ward, &editor), fits)
        };
        let (plain, (near, all), (far, folded)) = (
            distance(&ward, &ward.editor()),
            of("folded=false"),
            of("folded=true"),
        );
        assert!(near < far && far < plain, "{family}: {near} {far} {plain}");
        let other = all.iter().zip(&folded).find(|(all, folded)| all != folded);
        let (all, folded) = other.unwrap();
        assert_eq!(all.projections, folded.projections, "{family}");
        assert!(all.after < folded.after, "{family}: {all:?} {folded:?}");
        assert!(folded.after < folded.before, "{family}: {folded:?}");
    }
}

/// Of the first layer.
pub(super) const ATTENTION: At = At::Sublayer {
    layer: 0,
    sublayer: 0,
};

/// ‖R‖² and the mean of R at every writer.
fn residuals(editor: &mut StudentEditor) -> Vec<(f64, Tensor)> {
    let mut found = Vec::new();
    let look = &mut |_: &mut StudentEditor, stats: &ProjectionStats| {
        if stats.projections.is_writer {
            found.push((
                stats.all.r_squared,
                stats.all.r_sum_e.f_div_scalar(stats.all.n_tokens as f64)?,
            ));
        }
        Ok(())
    };
    editor.for_each_projection(Sweep::default(), look).unwrap();
    found
}

#[test]
fn least_squares_never_adds_to_the_residual_that_it_is_fitted_to() {
    for config in linear_writers() {
        let writer = match config["model_type"].as_str() {
            Some("nemotron_h" | "bamba") => MAMBA_OUTPUT,
            _ => Role::ATTENTION_OUTPUT,
        };
        let ward = Ward::of(&config, &HALVED);
        let (mut before, mut first) = (ward.editor(), None);
        let look = &mut |_: &mut StudentEditor, stats: &ProjectionStats| {
            if first.is_none() && stats.projections.is_writer {
                first = Some(Moments {
                    xx_cc: stats.all.xx_cc.copy(),
                    x_sum_c: stats.all.x_sum_c.copy(),
                    rx_ec: stats.all.rx_ec.copy(),
                    r_sum_e: stats.all.r_sum_e.copy(),
                    ..stats.all
                });
            }
            Ok(())
        };
        before.for_each_projection(Sweep::default(), look).unwrap();
        let mut after = ward.treated(&["least_squares:readers=false"]).unwrap();
        let gain = |kind: ParamKind| {
            let read = |editor: &StudentEditor| editor.read(ATTENTION, writer, kind).unwrap();
            (before.has(ATTENTION, writer, kind)).then(|| read(&after) - read(&before))
        };
        let (delta_ec, shift_e) = (gain(ParamKind::Weight).unwrap(), gain(ParamKind::Bias));
        let moments = first.unwrap();
        let predicted = moments.remaining(&delta_ec, shift_e.as_ref()).unwrap();
        let r_squared = moments.r_squared;
        assert!(
            predicted <= r_squared,
            "{}: {r_squared} to {predicted}",
            ward.model.family()
        );
        let found = residuals(&mut after)[0].0;
        assert!(
            (found - predicted).abs() <= 1e-4 * r_squared,
            "{}: {found} {predicted}",
            ward.model.family()
        );
    }
}

#[test]
fn a_neuron_whose_twin_is_dropped_does_the_work_of_both() {
    let mut model = Model::new(&tiny_llama(), 33).unwrap();
    let twins: Vec<i64> = (0..44).chain(0..4).collect();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap();
        let has_twins = matches!(param.role, Role::GATE | Role::UP);
        let tensor = if has_twins {
            tensor.index_select(0, &Tensor::from_slice(&twins))
        } else {
            tensor
        };
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    let mut ward = Ward::new(model, &[("mlp", 44)]);
    for (dim, kept) in &mut ward.plan.kept {
        if dim.starts_with("mlp.") {
            *kept = (0..44).collect();
        }
    }
    let ids_bt = some_ids(2, 12, 61, 34).unwrap();
    let teacher = forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
    assert!(relative(&logits(&ward.editor(), &ids_bt), &teacher) > 0.01);
    let reconstructed = ward.treated(&["least_squares:ridge=1e-8"]).unwrap();
    let difference = relative(&logits(&reconstructed, &ids_bt), &teacher);
    assert!(difference < 1e-4, "{difference:e}");
}

/// A constant is told by a bias.
#[test]
fn refitted_biases_leave_no_mean_of_what_the_stream_lacks() {
    for config in [tiny_gpt2(), tiny_neox(), tiny_bert()] {
        let ward = Ward::of(&config, &[("mlp", 24)]);
        let of = |how: &str| {
            let treated = ward.treated(&[&format!("least_squares:readers=false,ridge=1e-4{how}")]);
            let mut editor = treated.unwrap();
            let (distance, at) = (distance(&ward, &editor), ATTENTION);
            let bias = editor.read(at, Role::ATTENTION_OUTPUT, ParamKind::Bias);
            (distance, bias.unwrap(), residuals(&mut editor))
        };
        let (shifted, kept) = (of(""), of(",biases=false"));
        let family = ward.model.family();
        let largest = |mean: &Tensor| mean.abs().max().double_value(&[]);
        let lack = |of: &(f64, Tensor, Vec<(f64, Tensor)>)| {
            of.2.iter()
                .map(|(_, mean)| largest(mean))
                .fold(0.0, f64::max)
        };
        assert!(lack(&shifted) < 1e-5, "{family}: {}", lack(&shifted));
        assert!(lack(&kept) > 1e-4, "{family}: {}", lack(&kept));
        assert!(shifted.0 < kept.0, "{family}: {} {}", shifted.0, kept.0);
        let whole = ward.editor();
        let whole = whole.read(ATTENTION, Role::ATTENTION_OUTPUT, ParamKind::Bias);
        assert_eq!(kept.1, whole.unwrap(), "{family}");
    }
}

/// Whatever the ridge, what reads the stream gives on average what it gave: its bias says what the
/// channels that went had told of the mean.
#[test]
fn refitted_readers_give_the_teachers_mean() {
    let mut qwen = tiny_llama();
    qwen["model_type"] = "qwen2".into();
    for config in [tiny_gpt2(), tiny_neox(), tiny_bert(), tiny_gpt_oss(), qwen] {
        let ward = Ward::of(&config, &[("hidden", 24)]);
        let plain = ward.editor();
        let (mut n_seen, family) = (0, ward.model.family().to_owned());
        let look = &mut |editor: &mut StudentEditor, stats: &ProjectionStats| {
            let (all, of) = (&stats.all, &stats.projections);
            let n_tokens = all.n_tokens as f64;
            if of.is_writer || of.at == At::Model || of.roles == [Role::SUM_NORM] {
                return Ok(());
            }
            let now_k = all.x_sum_c.f_div_scalar(n_tokens)?;
            let kept: Vec<i64> = editor.kept(HIDDEN).iter().map(|&it| it as i64).collect();
            let wanted_e = all.r_sum_e.f_div_scalar(n_tokens)?;
            let wanted_e = wanted_e.f_index_add(0, &Tensor::from_slice(&kept), &now_k)?;
            for at in editor.spec().with_units(of.at) {
                for &role in &of.roles {
                    if !editor.has(at, role, ParamKind::Bias) {
                        continue;
                    }
                    let bias = editor.read(at, role, ParamKind::Bias)?;
                    let given = editor.read(at, role, ParamKind::Weight)?.f_matmul(&now_k)?;
                    let given = given + &bias;
                    let all = editor.read_all_channels(at, role, ParamKind::Weight)?;
                    let before = plain.read(at, role, ParamKind::Bias)?;
                    let expected = all.f_matmul(&wanted_e)? + &before;
                    let apart = relative(&given, &expected);
                    assert!(apart < 1e-5, "{family}, {at} {role}: {apart:e}");
                    n_seen += usize::from(relative(&bias, &before) > 1e-3);
                }
            }
            Ok(())
        };
        let mut editor = ward.treated(&["least_squares:ridge=1e-2"]).unwrap();
        editor.for_each_projection(Sweep::default(), look).unwrap();
        assert!(n_seen > 0, "{family}");
    }
}

/// Readers begin anew in each sweep, their biases with them.
#[test]
fn what_a_sweep_gave_biases_of_readers_is_gone_in_the_next() {
    for config in [tiny_gpt2(), tiny_neox(), tiny_bert()] {
        let ward = Ward::of(&config, &[("hidden", 24)]);
        let of = |treatments: &[&str]| {
            let editor = ward.treated(treatments).unwrap();
            let at = ATTENTION;
            let roles = [Role::QUERY, Role::QUERY_KEY_VALUE];
            let mut roles = roles
                .into_iter()
                .filter(|role| editor.has(at, *role, ParamKind::Bias));
            let role = roles.next().unwrap();
            let read = |kind| editor.read(at, role, kind).unwrap();
            (read(ParamKind::Weight), read(ParamKind::Bias))
        };
        let once = "least_squares:writers=false,ridge=0.01,biases=false";
        let shifting = "least_squares:writers=false,ridge=0.01";
        assert_ne!(of(&[shifting]).1, of(&[once]).1);
        assert_eq!(of(&[shifting, once]), of(&[once]));
    }
}

/// Behind the norm after a sum, no line of what it gives is nearer to what the teacher's gives.
#[test]
fn norms_after_sums_are_the_nearest_lines() {
    for (dim, kept) in [("hidden", 24), ("depth", 1), ("mlp", 24)] {
        let ward = Ward::of(&tiny_bert(), &[(dim, kept)]);
        let mut editor = ward
            .treated(&["layer_merge", "least_squares:ridge=0.01"])
            .unwrap();
        let mut n_seen = 0;
        let look = &mut |_: &mut StudentEditor, stats: &ProjectionStats| {
            if stats.projections.roles == [Role::SUM_NORM] {
                let centred = stats.all.centred()?;
                let mean = stats.all.r_sum_e.abs().max().double_value(&[]);
                let product = centred
                    .rx_ec
                    .diagonal(0, 0, 1)
                    .abs()
                    .max()
                    .double_value(&[]);
                let size = stats.all.target_squared;
                assert!(mean < 1e-5 * size, "{dim}: {mean:e} of {size:e}");
                assert!(product < 1e-5 * size, "{dim}: {product:e} of {size:e}");
                n_seen += 1;
            }
            Ok(())
        };
        let sweep = Sweep {
            norms: true,
            ..Sweep::default()
        };
        editor.for_each_projection(sweep, look).unwrap();
        assert_eq!(n_seen, 2 * editor.n_layers());
        let (plain, left) = (distance(&ward, &ward.editor()), distance(&ward, &editor));
        assert!(left < plain, "{dim}: {plain} to {left}");
    }
}

#[test]
fn activations_that_are_not_finite_and_ridges_that_are_too_small_are_refused() {
    let mut model = Model::new(&tiny_gpt2(), 5).unwrap();
    let name = "transformer.wte.weight";
    let table = model.source.read(name).unwrap();
    model.source.insert(name, &(table * f64::INFINITY)).unwrap();
    let ward = Ward::new(model, &[("mlp", 24)]);
    let error = ward.treated(&["least_squares"]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    let ward = Ward::of(&tiny_neox(), &[("mlp", 24)]);
    let tiny = ward.treated(&["least_squares:ridge=1e-12"]).map(|_| ());
    let error = tiny.unwrap_err().to_string();
    assert!(error.contains("ridge=1e-12 is too small"), "{error}");
}

#[test]
fn compensated_biases_restore_the_mean_of_the_stream() {
    let ward = Ward::of(&tiny_gpt2(), &[("mlp", 24)]);
    let (before, after) = (ward.treated(&[]), ward.treated(&["bias_compensation"]));
    let (before, after) = (
        residuals(&mut before.unwrap()),
        residuals(&mut after.unwrap()),
    );
    for ((_, before), (_, after)) in before.iter().zip(&after).skip(1) {
        let largest = |mean: &Tensor| mean.abs().max().double_value(&[]);
        assert!(
            largest(after) < 1e-5 && largest(before) > 1e-2,
            "{} to {}",
            largest(before),
            largest(after)
        );
    }
}

#[test]
fn merged_heads_are_twice_the_kept_one_less_the_dropped_one() {
    // Heads of one fused matrix, [in | q k v]: the last of three kept takes the fourth in.
    let ward = Ward::of(&tiny_gpt2(), &[("hidden", 24), ("heads", 3)]);
    let editor = ward.treated(&["head_merge"]).unwrap();
    let order = &editor.ranked("heads.1").unwrap()[0];
    let name = "transformer.h.1.attn.c_attn.bias";
    let (source, merged) = (
        ward.model.source.read(name).unwrap(),
        editor.student().unwrap().read(name).unwrap(),
    );
    let head = |bias: &Tensor, n_heads: i64, part: i64, head: i64| {
        bias.narrow(0, (part * n_heads + head) * 8, 8)
    };
    for part in 0..3 {
        for (position, &kept) in editor.kept("heads.1").iter().enumerate() {
            let of_source = |unit: usize| head(&source, 4, part, unit as i64);
            let expected = if kept == order[2] {
                of_source(kept) * 2.0 - of_source(order[3])
            } else {
                of_source(kept)
            };
            let found = head(&merged, 3, part, position as i64);
            assert!(
                relative(&found, &expected) <= REORDERED,
                "part {part}, head {kept}"
            );
        }
    }
}

#[test]
fn shared_keys_and_values_stay_when_query_heads_merge() {
    let ward = Ward::of(&tiny_llama(), &[("heads", 2)]);
    let (pruned, merged) = (ward.editor(), ward.treated(&["head_merge"]).unwrap());
    let read =
        |editor: &StudentEditor, role| editor.read(ATTENTION, role, ParamKind::Weight).unwrap();
    assert_eq!(read(&pruned, Role::KEY), read(&merged, Role::KEY));
    assert_eq!(read(&pruned, Role::VALUE), read(&merged, Role::VALUE));
    let source = merged
        .read_all_heads(ATTENTION, Role::QUERY, ParamKind::Weight)
        .unwrap();
    let row = |head: usize| source.narrow(0, head as i64 * 8, 8);
    let expected: Vec<Tensor> = merged
        .ranked("heads.0")
        .unwrap()
        .iter()
        .map(|part| row(part[0]) * 2.0 - row(part[1]))
        .collect();
    assert!(relative(&read(&merged, Role::QUERY), &Tensor::cat(&expected, 0)) <= REORDERED);
}

/// Llama, tied or not.
fn llama(tied: bool) -> Value {
    let mut config = tiny_llama();
    config["tie_word_embeddings"] = tied.into();
    config
}

/// A random orthogonal matrix [32, 32]; with `keeps_mean`, one that leaves the direction in which
/// all channels are equal.
fn some_basis(keeps_mean: bool) -> Tensor {
    let mut random = SplitMix::new(36);
    let mut draw = |n: i64| {
        let values: Vec<f64> = (0..n * n).map(|_| random.unit() - 0.5).collect();
        Tensor::from_slice(&values).view([n, n])
    };
    let orthogonal = |x: &Tensor| Tensor::linalg_qr(x, "reduced").0;
    if !keeps_mean {
        return orthogonal(&draw(32));
    }
    let with_mean = draw(32);
    let _ = with_mean.narrow(1, 0, 1).fill_(1.0);
    let axes = orthogonal(&with_mean);
    let one = Tensor::ones([1, 1], (Kind::Double, Device::Cpu));
    let turn = Tensor::block_diag(&[one, orthogonal(&draw(31))]);
    axes.matmul(&turn).matmul(&axes.transpose(0, 1))
}

#[test]
fn a_turned_stream_leaves_the_logits_equal() {
    let of_layer_norms = [tiny_gpt2(), tiny_nemotron(), tiny_neox()];
    let models = [llama(false), llama(true)]
        .into_iter()
        .chain(of_layer_norms);
    for config in models {
        let ward = Ward::of(&config, &[]);
        let family = ward.model.family();
        let ids_bt = some_ids(2, 12, 61, 35).unwrap();
        let teacher = forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
        let mut editor = ward.editor();
        let basis_ee = some_basis(editor.is_centred());
        editor.rotate_residual(&basis_ee, true).unwrap();
        // As a student of all channels, and as the teacher that reconstructions look at.
        let student = logits(&editor, &ids_bt);
        let turned = load(editor.teacher(), editor.teacher_spec()).unwrap();
        for found in [student, forward(&turned, &ids_bt).unwrap()] {
            let difference = relative(&found, &teacher);
            assert!(difference < 1e-4, "{family}: {difference:e}");
        }
        assert!(!editor.spec().options.tied, "{family}");
    }
}

/// A model whose final norm has another gain, and adds nothing to all channels alike: a table without
/// its mean has nothing to say of that.
fn with_final_gain(config: &Value, gain: impl Fn(&Tensor) -> Tensor) -> Model {
    let mut model = Model::new(config, 30).unwrap();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap();
        let tensor = match (param.role == Role::FINAL_NORM, param.kind) {
            (false, _) => tensor,
            (true, ParamKind::Weight) => gain(&tensor),
            (true, ParamKind::Bias) => &tensor - tensor.mean(Kind::Float),
        };
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    model
}

/// Of a rotation that keeps embeddings tied or not.
fn warnings_of(ward: &Ward, unties: bool) -> String {
    let progress = Recorder::default();
    let mut inputs = ward.inputs();
    let text = inputs.calibration.as_mut().unwrap();
    text.progress = &progress;
    let mut editor = StudentEditor::new(inputs, ward.plan.clone()).unwrap();
    let basis_ee = some_basis(editor.is_centred());
    editor.rotate_residual(&basis_ee, unties).unwrap();
    progress.warnings().concat()
}

#[test]
fn a_tied_table_behind_an_uneven_gain_is_warned_of() {
    let half = |gain_e: &Tensor| {
        let _ = gain_e.narrow(0, 0, 16).fill_(0.5);
        gain_e.shallow_clone()
    };
    for config in [llama(true), tiny_gpt2()] {
        let even = Ward::new(with_final_gain(&config, |x| x.full_like(1.5)), &[]);
        assert_eq!(warnings_of(&even, false), "");
        let uneven = Ward::new(with_final_gain(&config, half), &[]);
        assert_eq!(warnings_of(&uneven, true), "");
        let told = warnings_of(&uneven, false);
        assert!(
            told.contains("loses") && told.contains("untie=true"),
            "{told}"
        );
    }
}

/// A final gain that is the same at all channels is all that tied embeddings need.
#[test]
fn a_turned_stream_keeps_embeddings_tied_and_the_logits_of_an_even_gain() {
    for config in [llama(true), tiny_gpt2()] {
        let ward = Ward::new(with_final_gain(&config, |x| x.full_like(1.5)), &[]);
        let family = ward.model.family();
        let ids_bt = some_ids(2, 12, 61, 35).unwrap();
        let teacher = forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
        let mut editor = ward.editor();
        let basis_ee = some_basis(editor.is_centred());
        editor.rotate_residual(&basis_ee, false).unwrap();
        let difference = relative(&logits(&editor, &ids_bt), &teacher);
        assert!(difference < 1e-3, "{family}: {difference:e}");
        assert!(editor.spec().options.tied, "{family}");
    }
}

#[test]
fn a_basis_in_which_layer_norms_would_take_another_mean_out_is_refused() {
    let ward = Ward::of(&tiny_gpt2(), &[("hidden", 24)]);
    let refused = ward.editor().rotate_residual(&some_basis(true), true);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("the mean that layer norms take out")
    );
}

#[test]
fn components_lose_less_of_the_stream_than_channels() {
    let of_layer_norms = [tiny_gpt2(), tiny_nemotron(), tiny_neox()];
    let models = [llama(false), llama(true)]
        .into_iter()
        .chain(of_layer_norms);
    for (rotation, config) in [
        "rotation",
        "rotation:untie=true",
        "rotation:spread=true",
        "rotation:basis=readers",
    ]
    .into_iter()
    .flat_map(|rotation| models.clone().map(move |config| (rotation, config)))
    {
        let ward = Ward::of(&config, &[("hidden", 24)]);
        let tied = format!("{}, {rotation}", ward.model.family());
        let turned = ward.treated(&[rotation]).unwrap();
        assert_eq!(turned.kept(HIDDEN), (0..24).collect::<Vec<_>>());
        let (channels, components) = (distance(&ward, &ward.editor()), distance(&ward, &turned));
        assert!(components < channels, "{tied}: {channels} to {components}");
        let refitted = ward.treated(&[rotation, "least_squares"]).unwrap();
        assert!(distance(&ward, &refitted) < components, "{tied}");
        let reconstructed: Vec<String> = refitted
            .reconstructed()
            .iter()
            .map(PluginSpec::to_string)
            .collect();
        assert!(
            reconstructed[0].starts_with("rotation")
                && reconstructed[1].starts_with("least_squares:ridge="),
            "{reconstructed:?}"
        );
    }
}

#[test]
fn a_reconstruction_says_what_it_lacks() {
    let (llama, bert) = (
        Ward::of(&tiny_llama(), &HALVED),
        Ward::of(&tiny_bert(), &HALVED),
    );
    for (ward, reconstructions, says) in [
        (
            &llama,
            &["least_squares:ridge=0"][..],
            "ridge: expected a number above 0, got 0",
        ),
        (
            &llama,
            &["bias_compensation"],
            "no biases on its output projections",
        ),
        (&llama, &["least_squares", "rotation"], "name it first"),
        (&llama, &["rotation", "rotation"], "name it first"),
        (
            &bert,
            &["rotation"],
            "`bert` has layer norms after its sums",
        ),
    ] {
        let error = ward.treated(reconstructions).err().unwrap();
        assert!(
            error.is_usage() && error.to_string().contains(says),
            "{error}"
        );
    }
    let bare = ReconstructInputs {
        rankings: None,
        calibration: None,
        ..llama.inputs()
    };
    for (reconstruction, says) in [
        ("least_squares", "needs calibration text: give --data"),
        ("head_merge", "give the scores"),
    ] {
        let mut editor = StudentEditor::new(bare, llama.plan.clone()).unwrap();
        let reconstruction = llama
            .registry
            .build::<dyn Reconstruction>(&PluginSpec::bare(reconstruction))
            .unwrap();
        let error = editor.treat(reconstruction.as_ref()).unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[test]
fn a_replaced_weight_of_another_shape_or_not_finite_is_refused_by_name() {
    let ward = Ward::of(&tiny_llama(), &[("mlp", 24)]);
    let mut editor = ward.editor();
    let mut replace = |tensor: &Tensor| {
        editor
            .replace(
                At::Sublayer {
                    layer: 0,
                    sublayer: 1,
                },
                Role::DOWN,
                ParamKind::Weight,
                tensor,
            )
            .unwrap_err()
    };
    let wrong = replace(&Tensor::zeros([32, 48], (Kind::Double, Device::Cpu))).to_string();
    assert!(
        wrong.contains("expected shape [32, 24], got [32, 48]"),
        "{wrong}"
    );
    // Finite in f64, not as it is stored.
    let wide = replace(&Tensor::full([32, 24], 1e300, (Kind::Double, Device::Cpu))).to_string();
    assert!(wide.contains("not finite"), "{wide}");
}

#[test]
fn a_reconstructed_folder_is_a_plain_checkpoint_that_says_how_it_was_reconstructed() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = dir.path().join("teacher");
    minitron::write_tiny(&teacher, &minitron::with_demo_vocabulary(llama(true)), 37).unwrap();
    minitron::add_demo_tokenizer(&teacher).unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, minitron::some_text()).unwrap();
    let plan = dir.path().join("plan.json");
    let kept: Vec<usize> = (0..16).collect();
    std::fs::write(&plan, json!({ "kept": { "hidden": kept } }).to_string()).unwrap();
    let options = PruneOptions {
        model: teacher.display().to_string(),
        plan: Some(plan),
        reconstruction: ReconstructOptions {
            reconstruct: vec![
                PluginSpec::bare("rotation"),
                "least_squares:ridge=0.01".parse().unwrap(),
            ],
            data: vec![text.display().to_string().parse().unwrap()],
            seq_len: Some(32),
            ..ReconstructOptions::default()
        },
        ..PruneOptions::default()
    };
    let out = dir.path().join("student");
    let (planned, written) = with_context(false, |context| {
        (
            prune(context, &options, &out, true).unwrap(),
            prune(context, &options, &out, false).unwrap(),
        )
    });
    let folder = ModelFolder::open(&out, &registry()).unwrap();
    assert!(folder.spec.options.tied && folder.unknown_tensors.is_empty());
    assert_eq!(planned["n_params"], folder.spec.n_params());
    assert_eq!(written["n_params"], folder.spec.n_params());
    let saved: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("plan.json")).unwrap()).unwrap();
    assert_eq!(saved["hidden_basis"], "rotation");
    assert!(
        saved["healed"][1]
            .as_str()
            .unwrap()
            .starts_with("least_squares:ridge=0.01"),
        "{saved}"
    );
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        card.contains(
            "| reconstruct | rotation:basis=variance,spread=false,untie=false, least_squares:ridge=0.01"
        ),
        "{card}"
    );
}
