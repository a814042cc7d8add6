#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

//! One plugin of every kind that keeps its law, until a parameter says which one to break.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minitron::{config, forward, registry, some_windows};
use minitron_core::calibrate::{Observation, SequenceStat, Site};
use minitron_core::checkpoint::Config;
use minitron_core::contract::{
    Allocator, Architecture, Axis, Corpus, Document, Documents, Evaluator, Importance, LogitLoss,
    Measurements, Mixer, ModelPair, Need, Observed, Reconstruction, RunMixer, Scorer, SitePair,
    StateLoss, States, Subject, TeacherNeed,
};
use minitron_core::descriptor;
use minitron_core::error::Result;
use minitron_core::evaluate::scan_rows;
use minitron_core::mixers::MAMBA_OUTPUT;
use minitron_core::model::{
    Linear, LoadOptions, MixerContext, MixerState, PartWeights, Port, PortTap, Ports, Transformer,
};
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::progress::Silent;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::registry::{Descriptor, Kind, PluginSpec, Registry};
use minitron_core::spec::{
    At, CheckpointInfo, ConfigKey, Cost, MLP, ModelSpec, ParamKind, PruneGroup, Role, Sizes, fixed,
};
use minitron_plugins::laws::{self, UNTRIED};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

thread_local! {
    /// What the plugins of this thread do wrong.
    static FAULT: RefCell<&'static str> = const { RefCell::new("") };
}

/// A plugin of the tests alone: its fault is its only parameter, and what this thread says where it
/// is left out.
macro_rules! faulty {
    ($($plugin:ident)*) => {$(
        /// Keeps its law without a fault.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct $plugin {
            /// What it does wrong.
            fault: String,
        }

        impl Default for $plugin {
            fn default() -> Self {
                $plugin { fault: FAULT.with_borrow(|fault| (*fault).to_owned()) }
            }
        }

        impl $plugin {
            #[allow(dead_code)] // Not every kind asks.
            fn has(&self, fault: &str) -> bool {
                self.fault == fault
            }
        }
    )*};
}

faulty! {
    BadFamily BadAxis BadMetric BadAllocator BadReconstruction BadLoss BadStates BadMeasure BadText
}

/// Says another number each time.
fn calls() -> usize {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

#[typetag::serde(name = "bad_family")]
impl Architecture for BadFamily {
    fn recognises(&self, config: &Config) -> bool {
        self.has("greedy") || config.model_type().is_ok_and(|found| found == "bad_family")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let mut config = evidence.config.clone();
        config.set("model_type", "llama");
        let llama = registry().build::<dyn Architecture>(&PluginSpec::bare("llama"))?;
        let mut spec = llama.spec(&CheckpointInfo::config_alone(&config))?;
        spec.config = evidence.config.clone();
        spec.architecture = if self.has("name") {
            "llama"
        } else {
            "bad_family"
        }
        .into();
        if self.has("fickle") {
            spec.options.initializer_range += calls() as f64;
        }
        for tensor in spec
            .params
            .iter_mut()
            .filter(|tensor| tensor.role == Role::DOWN && self.has("sides"))
        {
            tensor.sides[1] = fixed(48);
        }
        for dim in spec
            .dims
            .values_mut()
            .filter(|dim| dim.name.starts_with(MLP) && self.has("key"))
        {
            dim.stated = vec![ConfigKey::scalar("ffn_size")];
        }
        for part in spec.layers.iter_mut().flat_map(|layer| layer.0.last_mut()) {
            part.mixer = Arc::new(BadMixer(self.fault.clone()));
        }
        Ok(spec)
    }
}

/// A gated MLP of the family's own.
#[derive(Debug, Clone)]
struct BadMixer(String);

impl BadMixer {
    fn at(&self, place: &str) {
        assert!(self.0 != place, "at its {place}");
    }
}

impl Mixer for BadMixer {
    fn name(&self) -> &'static str {
        "own"
    }

    fn ports(&self) -> Ports {
        self.at("ports");
        Ports::new(vec![Role::GATE, Role::UP], Role::DOWN, Port::NEURONS)
    }

    fn observed(&self) -> Vec<Observed> {
        vec![Observed {
            kind: MLP,
            port: Port::NEURONS,
            width: 1,
        }]
    }

    fn shows(&self) -> Vec<Port> {
        vec![Port::NEURONS]
    }

    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        // Of the model's own size it says something.
        let is_own = size(MLP) == 48;
        self.at(if is_own { "cost" } else { "cost of others" });
        Cost {
            inside: 4 * size(MLP) as u64,
            ..Cost::default()
        }
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        self.at("load");
        let of = self.clone();
        let [gate, up] = [
            Role::GATE,
            if self.0 == "role" {
                Role("up and away")
            } else {
                Role::UP
            },
        ];
        let (gate, up, down) = (
            weights.linear(gate)?,
            weights.linear(up)?,
            weights.linear(Role::DOWN)?,
        );
        Ok(Box::new(RunBadMixer { of, gate, up, down }))
    }
}

#[derive(Debug)]
struct RunBadMixer {
    of: BadMixer,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Drop for RunBadMixer {
    fn drop(&mut self) {
        self.of.at("end");
    }
}

impl RunMixer for RunBadMixer {
    fn forward(
        &self,
        x_bte: &Tensor,
        _: &MixerContext,
        _: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        self.of.at("forward");
        let up_btf = self.up.forward(x_bte)?;
        let inner_btf = self.gate.forward(x_bte)?.f_silu()?.f_mul(&up_btf)?;
        tap.show(Port::NEURONS, &inner_btf)?;
        let added_bte = self.down.forward(&inner_btf)?;
        match self.of.0.as_str() {
            "product" => Ok(added_bte.f_matmul(&inner_btf)?),
            "ahead" => Ok(added_bte.f_add(&x_bte.f_mean_dim(1, true, None)?)?),
            _ => Ok(added_bte),
        }
    }
}

#[typetag::serde(name = "bad_axis")]
impl Axis for BadAxis {
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        let mut groups = PruneGroup::of_kind(spec, MLP);
        match self.fault.as_str() {
            "twice" => groups.extend(groups.clone()),
            "short" => groups.iter_mut().for_each(|group| group.n_units -= 1),
            _ => {}
        }
        Ok(groups)
    }

    fn multiple_of(&self) -> Option<usize> {
        None
    }
}

#[typetag::serde(name = "bad_metric")]
impl Importance for BadMetric {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        (group.kind() == MLP).then(|| Need::Sites(group.sites.clone()))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(BadScorer {
            fault: self.fault.clone(),
            block: group.block,
            sums_u: vec![0.0; group.n_units],
        }))
    }
}

#[derive(Debug)]
struct BadScorer {
    fault: String,
    block: usize,
    sums_u: Vec<f64>,
}

impl Scorer for BadScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let stat_bu = observation
            .activations()?
            .per_window(SequenceStat::Mean, self.block)?;
        for (idx, stat_u) in stat_bu.chunks(self.sums_u.len()).enumerate() {
            // The first window of each batch alone.
            let counts = self.fault != "batches" || idx == 0;
            self.sums_u
                .iter_mut()
                .zip(stat_u)
                .for_each(|(sum, value)| *sum += if counts { *value } else { 0.0 });
        }
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        self.sums_u.clone()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        self.sums_u
            .iter_mut()
            .zip(state)
            .for_each(|(ours, theirs)| *ours += theirs);
        Ok(())
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let add = if self.fault == "fickle" {
            calls() as f64
        } else {
            0.0
        };
        let mut scores: Vec<f32> = self.sums_u.iter().map(|sum| (sum + add) as f32).collect();
        match self.fault.as_str() {
            "nan" => scores[0] = f32::NAN,
            "short" => scores.truncate(1),
            _ => {}
        }
        Ok(scores)
    }
}

#[typetag::serde(name = "bad_allocator")]
impl Allocator for BadAllocator {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        let size = if self.has("fickle") && calls().is_multiple_of(2) {
            16
        } else {
            24
        };
        let mut plan = space.plan(&Sizes::from([(MLP.to_owned(), size)]), rankings, spec)?;
        match self.fault.as_str() {
            "none" => return Ok(Vec::new()),
            "illegal" => plan.kept.values_mut().for_each(|kept| kept.truncate(5)),
            "widths" => plan.kept.get_mut("mlp.0").unwrap().truncate(16),
            _ => {}
        }
        Ok(vec![plan])
    }
}

#[typetag::serde(name = "bad_reconstruction")]
impl Reconstruction for BadReconstruction {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        let kind = ParamKind::Weight;
        if editor.is_whole() && !self.has("meddling") {
            return Ok(());
        }
        let at = At::Sublayer {
            layer: 0,
            sublayer: 0,
        };
        let role = match editor.spec().find(at, MAMBA_OUTPUT, kind) {
            Some(_) => MAMBA_OUTPUT,
            None => Role::ATTENTION_OUTPUT,
        };
        let weight = editor.read(at, role, kind)?;
        let weight = match self.fault.as_str() {
            "fickle" => weight + calls() as f64,
            "nan" => weight * f64::NAN,
            "shape" => weight.narrow(0, 0, 1),
            _ => weight * 1.5,
        };
        editor.replace(at, role, kind, &weight)
    }
}

#[typetag::serde(name = "bad_loss")]
impl LogitLoss for BadLoss {
    fn teacher(&self) -> TeacherNeed {
        if self.has("constants") {
            TeacherNeed::Distribution {
                n_tokens: TeacherNeed::ALL,
            }
        } else {
            TeacherNeed::Logits
        }
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        _labels_n: &Tensor,
    ) -> Result<Tensor> {
        let teacher_nv = teacher_nv.unwrap();
        let teacher_nv = if self.has("teacher") {
            teacher_nv.shallow_clone()
        } else {
            teacher_nv.detach()
        };
        let loss_n = (student_nv - teacher_nv).square().mean_dim(-1, false, None);
        Ok(match self.fault.as_str() {
            "rows" => loss_n.mean(None) + &loss_n,
            "mean" => loss_n.mean(None),
            "detached" => loss_n.detach(),
            "gradient" => &loss_n + &loss_n - loss_n.detach(),
            "overflow" => student_nv.exp().sum_dim_intlist(-1, false, None),
            "fickle" => loss_n + calls() as f64,
            _ => loss_n,
        })
    }
}

#[typetag::serde(name = "bad_states")]
impl StateLoss for BadStates {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let last = SitePair::new(Site::Last, Site::Last);
        let deep = Site::LayerInput(models.teacher.n_layers() - 1);
        let deep = SitePair::new(deep, Site::Last);
        Ok(match self.fault.as_str() {
            "nothing" => Vec::new(),
            "depth" => vec![deep],
            _ => vec![last],
        })
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        if self.has("padding") {
            return Ok((student.x_btc - teacher.x_btc.detach()).square().mean(None));
        }
        let (student_nc, teacher_nc) = (student.rows()?, teacher.rows()?);
        let teacher_nc = if self.has("teacher") {
            teacher_nc
        } else {
            teacher_nc.detach()
        };
        let d_nc = (student_nc - teacher_nc).square();
        Ok(match self.fault.as_str() {
            "sides" => d_nc.mean_dim(-1, false, None),
            "detached" => d_nc.mean(None).detach(),
            "gradient" => 3.0 * d_nc.mean(None) - 2.0 * d_nc.mean(None).detach(),
            "sum" => d_nc.sum(None),
            _ => d_nc.mean(None),
        })
    }
}

#[typetag::serde(name = "bad_measure")]
impl Evaluator for BadMeasure {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let (mut sum, mut n_rows, mut n_batches) = (0.0, 0.0, 0.0);
        scan_rows(subject, |rows| {
            sum += rows
                .student_nv
                .max_dim(-1, false)
                .0
                .sum(tch::Kind::Double)
                .double_value(&[]);
            n_rows += rows.labels_n.numel() as f64;
            n_batches += 1.0;
            Ok(())
        })?;
        let value = match self.fault.as_str() {
            "infinite" => f64::INFINITY,
            "batches" => sum / (n_rows + subject.batch_size as f64),
            "fickle" => sum + calls() as f64,
            _ => sum / n_rows,
        };
        assert!(n_batches > 0.0);
        let nothing = self.has("nothing");
        Ok(if nothing {
            Measurements::new()
        } else {
            Measurements::from([("largest".to_owned(), value)])
        })
    }
}

#[typetag::serde(name = "bad_text")]
impl Corpus for BadText {
    fn extensions(&self) -> &'static [&'static str] {
        &[]
    }

    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn documents(&self, _seed: u64) -> Result<Documents<'_>> {
        let add = if self.has("fickle") {
            calls() as u32
        } else {
            0
        };
        let n = if self.has("nothing") { 0 } else { 4 };
        let open = self.has("open");
        Ok(Box::new((0..n).map(move |idx| {
            let tokens = Document::Tokens(vec![idx + add]);
            Ok(if open && idx == 3 {
                Document::Part(Box::new(tokens))
            } else {
                tokens
            })
        })))
    }

    fn documents_from(&self, seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let skipped = n_items as usize + usize::from(self.has("skips") && n_items > 0);
        Ok(Box::new(self.documents(seed)?.skip(skipped)))
    }
}

macro_rules! tested {
    ($contract:ident for $plugin:ident, $tag:literal) => {
        descriptor! { $contract for $plugin { tag: $tag, summary: "a test", source: "a test" } }
    };
}

fn descriptors() -> [Descriptor; 9] {
    [
        tested!(Architecture for BadFamily, "bad_family"),
        tested!(Axis for BadAxis, "bad_axis"),
        tested!(Importance for BadMetric, "bad_metric"),
        tested!(Allocator for BadAllocator, "bad_allocator"),
        tested!(Reconstruction for BadReconstruction, "bad_reconstruction"),
        tested!(LogitLoss for BadLoss, "bad_loss"),
        tested!(StateLoss for BadStates, "bad_states"),
        tested!(Evaluator for BadMeasure, "bad_measure"),
        tested!(Corpus for BadText, "bad_text"),
    ]
}

/// As if a library had brought them.
fn opened() -> Registry {
    let leaked: &'static [Descriptor] = Box::leak(Box::new(descriptors()));
    registry()
        .with_library(String::new(), leaked.iter().collect())
        .unwrap()
}

#[test]
fn without_a_fault_they_keep_their_laws() {
    let checked = laws::check_opened(&opened()).unwrap();
    assert_eq!(checked.len(), Kind::ALL.len());
    for (name, verdict) in checked {
        assert!(
            verdict.starts_with("form, ") && !verdict.contains(UNTRIED),
            "{name}: {verdict}"
        );
    }
}

/// Kind, tag, and what is said of each fault.
type Faults = (Kind, &'static str, &'static [(&'static str, &'static str)]);

const FAULTS: [Faults; 9] = [
    (
        Kind::Architecture,
        "bad_family",
        &[
            ("greedy", "it recognises a config of `bamba`"),
            ("name", "its spec is called `llama`"),
            ("fickle", "asked twice, it gives two specs"),
            ("sides", "`mlp.0` in another order changes the outputs"),
            ("key", "a student with "),
            ("ports", "it panicked: at its ports"),
            ("cost", "it panicked: at its cost"),
            ("load", "it panicked: at its load"),
            ("forward", "it panicked: at its forward"),
            ("role", "declares no up and away"),
            ("product", "torch: "),
            ("ahead", "a token changes what stands before it"),
        ],
    ),
    (
        Kind::Axis,
        "bad_axis",
        &[
            ("twice", "group `mlp.0` of 48 units"),
            ("short", "group `mlp.0` of 47 units"),
        ],
    ),
    (
        Kind::Importance,
        "bad_metric",
        &[
            ("batches", "depends on how windows are batched"),
            ("fickle", "asked twice, it gives two answers"),
            ("nan", "scored unit 0 of `mlp.0` as NaN"),
            ("short", "scored 1 of 48 units"),
        ],
    ),
    (
        Kind::Allocator,
        "bad_allocator",
        &[
            ("none", "it gives no plan"),
            ("illegal", "an illegal plan"),
            ("widths", "an illegal plan"),
            ("fickle", "asked twice, it gives two answers"),
        ],
    ),
    (
        Kind::Reconstruction,
        "bad_reconstruction",
        &[
            (
                "meddling",
                "changed a student from which nothing was removed",
            ),
            ("fickle", "asked twice, it gives two students"),
            ("nan", "values that are not finite"),
            ("shape", "expected shape"),
        ],
    ),
    (
        Kind::Loss,
        "bad_loss",
        &[
            ("rows", "depends on others"),
            ("mean", "expected one loss for each of 6 rows"),
            ("detached", "no gradient reaches the student's logits"),
            ("gradient", "away from its differences"),
            ("overflow", "is not finite for finite logits"),
            ("fickle", "asked twice, it gives two answers"),
            ("teacher", "the teacher's logits get a gradient"),
            (
                "constants",
                "a constant added to a row of the teacher's logits",
            ),
        ],
    ),
    (
        Kind::StateLoss,
        "bad_states",
        &[
            ("nothing", "it compares nothing"),
            (
                "depth",
                "LayerInput(4): a site that a `bamba` of 3 layers does not show",
            ),
            ("padding", "depends on what stands for no token"),
            ("sides", "expected a scalar"),
            ("detached", "no gradient reaches the student's states"),
            ("gradient", "away from its differences"),
            ("sum", "expected a mean over tokens"),
            ("teacher", "the teacher's states get a gradient"),
        ],
    ),
    (
        Kind::Evaluator,
        "bad_measure",
        &[
            ("infinite", "`largest` came out as inf"),
            ("batches", "with batches of 3 instead of 8, `largest` is "),
            ("fickle", "asked twice, `largest` is "),
            ("nothing", "it measures nothing"),
        ],
    ),
    (
        Kind::Corpus,
        "bad_text",
        &[
            ("fickle", "asked twice, it gives other documents"),
            ("skips", "after 1 items, it goes on with others"),
            ("open", "its last item is a part"),
            ("nothing", "it gives no document"),
        ],
    ),
];

#[test]
fn every_fault_of_every_kind_is_caught_and_named_with_the_plugin_and_its_origin() {
    assert_eq!(
        FAULTS
            .iter()
            .map(|(kind, ..)| *kind)
            .collect::<HashSet<_>>()
            .len(),
        Kind::ALL.len()
    );
    for (kind, tag, faults) in FAULTS {
        // As if its library brought this one alone.
        let plugin = opened().find(kind, tag).unwrap();
        let registry = registry()
            .with_library(String::new(), vec![plugin])
            .unwrap();
        for (fault, says) in faults {
            FAULT.set(fault);
            let text = laws::check_opened(&registry)
                .map_err(|error| error.to_string())
                .unwrap_err();
            FAULT.set("");
            let begins = format!(
                "plugin: `{tag}` ({} {}): ",
                env!("CARGO_PKG_NAME"),
                env!("CARGO_PKG_VERSION")
            );
            assert!(
                text.starts_with(&begins) && text.contains(says),
                "{tag}, {fault}: {text}"
            );
        }
    }
}

/// Panics where nobody waits for an error.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Brittle {}

impl std::fmt::Debug for Brittle {
    fn fmt(&self, _f: &mut std::fmt::Formatter) -> std::fmt::Result {
        panic!("shown");
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[typetag::serde(name = "brittle")]
impl Importance for Brittle {
    fn need(&self, _group: &PruneGroup) -> Option<Need> {
        None
    }

    fn scorer(&self, _group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(BrittleScorer(Brittle {})))
    }
}

#[derive(Debug)]
struct BrittleScorer(#[allow(dead_code)] Brittle);

impl Scorer for BrittleScorer {
    fn observe(&mut self, _observation: &Observation) -> Result<()> {
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    fn merge(&mut self, _state: &[f64]) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
}

#[test]
fn what_panics_while_shown_or_dropped_unwinds_no_further_than_its_guard() {
    let plugin = tested!(Importance for Brittle, "brittle");
    let plugin: &'static Descriptor = Box::leak(Box::new(plugin));
    let registry = registry()
        .with_library(String::new(), vec![plugin])
        .unwrap();
    let brittle = registry
        .build::<dyn Importance>(&PluginSpec::bare("brittle"))
        .unwrap();
    assert_eq!(format!("{brittle:?}"), "<its Debug panicked: shown>");
    assert_eq!(format!("{brittle:#?}"), "<its Debug panicked: shown>");
    let llama = laws::SampleModel::new(&registry, &laws::sample_config("llama"), 1).unwrap();
    let group = PruneGroup::of_kind(&llama.spec, MLP).remove(0);
    let scorer = brittle.scorer(&group).unwrap();
    assert!(format!("{scorer:?}").contains("<its Debug panicked: shown>"));
    drop(scorer);
    drop(brittle);
    // It is shown as it shows itself where nothing is wrong.
    let honest = opened()
        .build::<dyn Axis>(&PluginSpec::bare("bad_axis"))
        .unwrap();
    assert_eq!(format!("{honest:?}"), "BadAxis { fault: \"\" }");
}

#[test]
fn a_mixer_of_a_library_is_guarded_wherever_it_is_asked_and_a_built_in_one_is_left_alone() {
    let registry = opened();
    let described = |tag: &str, fault: &'static str| {
        FAULT.set(fault);
        let found = ModelSpec::from_config(&config(&laws::sample_config(tag)).unwrap(), &registry);
        FAULT.set("");
        found.unwrap()
    };
    let model = |spec: &ModelSpec| {
        let source = laws::random_weights(spec, 1).unwrap();
        Transformer::load(&source, spec, LoadOptions::default())
    };
    let (own, llama) = (described("bad_family", ""), described("llama", ""));
    let ids_bt = Tensor::from_slice(&[3i64, 4, 5, 6]).view([1, 4]);
    let [one, two] = [&own, &llama].map(|spec| forward(&model(spec).unwrap(), &ids_bt).unwrap());
    assert!(one.equal(&two), "the same weights, and the same MLP");
    assert_eq!(own.n_params(), llama.n_params());
    let mixers = |spec: &ModelSpec| format!("{:?}", spec.layers[0].0[1].mixer);
    assert_eq!(mixers(&own), "BadMixer(\"\")");
    assert!(mixers(&llama).starts_with("Mlp {"), "{}", mixers(&llama));

    // Where no error can be said, the next thing that can fail says it.
    let fickle = described("bad_family", "cost of others");
    let half = Sizes::from([(MLP.to_owned(), 24)]);
    assert_eq!(
        fickle.kv_cache_bytes_at(&half, 8, 1),
        own.kv_cache_bytes_at(&half, 8, 1)
    );
    let said = model(&fickle).unwrap_err().to_string();
    assert!(
        said.contains("plugin: `bad_family`")
            && said.ends_with("it panicked: at its cost of others"),
        "{said}"
    );
    // What panics while it is dropped ends nothing.
    drop(model(&described("bad_family", "end")).unwrap());
}

#[test]
fn a_measurement_that_is_no_number_is_the_evaluators_error_with_its_key_and_value() {
    let registry = opened();
    let spec = PluginSpec::bare("bad_measure").with("fault", "infinite");
    let model = laws::SampleModel::new(&registry, &laws::sample_config("llama"), 1).unwrap();
    let model = Transformer::load(&model.source, &model.spec, LoadOptions::default()).unwrap();
    let windows = some_windows(2, 8, 61, 1).unwrap();
    let subject = Subject {
        model: &model,
        teacher: None,
        kept_hidden: None,
        windows: Some(&windows),
        tokenizer: None,
        batch_size: 2,
        seed: 0,
        progress: &Silent,
    };
    let error = registry
        .build::<dyn Evaluator>(&spec)
        .unwrap()
        .evaluate(&subject)
        .unwrap_err();
    insta::assert_snapshot!(
        error,
        @"plugin: `bad_measure` (minitron 0.1.0): `largest` came out as inf: expected a finite \
          number; the model's outputs may overflow, or its weights not be finite"
    );
}
