//! One factor of all logits, nearest to the teacher's.

use minitron::{tiny_bert, tiny_gpt2, tiny_llama, tiny_nemotron, tiny_nemotron_h, tiny_qwen2_moe};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, ParamKind, Role};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::Model;
use super::reconstruction::{Ward, logits};
use super::rescaling::decoder;

const FIT: &str = "temperature_scaling:tokens=1000000";
const FINAL: (At, Role) = (At::Model, Role::FINAL_NORM);

/// Norms that store gains less one, layer norms with biases, tied heads, factors and caps.
fn with_logits() -> Vec<Value> {
    let capped = json!({
        "sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 8.0
    });
    vec![
        tiny_llama(),
        tiny_gpt2(),
        tiny_nemotron(),
        tiny_nemotron_h(),
        tiny_qwen2_moe(),
        decoder("gemma2", &capped),
        decoder("granite", &json!({ "logits_scaling": 0.25 })),
    ]
}

/// Logits that tell tokens apart, as those of a trained model do; what is `silent` adds nothing.
fn sure(config: &Value, silent: &[Role]) -> Model {
    let mut model = Model::new(config, 30).unwrap();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let mut tensor = model.source.read(&param.name()).unwrap();
        if silent.contains(&param.role) {
            tensor = tensor.zeros_like();
        }
        if param.role == Role::FINAL_NORM {
            let less_one = model.spec.norm_of(param).unwrap().kind;
            let one = if less_one.stores_gain_less_one() && param.kind == ParamKind::Weight {
                1.0
            } else {
                0.0
            };
            tensor = (tensor + one) * 12.0 - one;
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    model
}

fn final_gain(editor: &StudentEditor) -> Tensor {
    editor.gain(FINAL.0, FINAL.1).unwrap()
}

fn multiply(editor: &mut StudentEditor, factor: f64) {
    let (at, role) = FINAL;
    editor.scale_gain(at, role, factor).unwrap();
    if editor.has(at, role, ParamKind::Bias) {
        let bias_k = editor.read(at, role, ParamKind::Bias).unwrap() * factor;
        editor.replace(at, role, ParamKind::Bias, &bias_k).unwrap();
    }
}

/// Mean KL(teacher ‖ student) over the whole text.
fn kl(ward: &Ward, editor: &StudentEditor) -> f64 {
    let ids_bt = ward.ids();
    let teacher = minitron::forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
    let of_vocab = |x: Tensor| x.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
    let (p, q) = (of_vocab(teacher), of_vocab(logits(editor, &ids_bt)));
    let per_token = (p.exp() * (&p - q)).sum_dim_intlist(-1i64, false, Kind::Double);
    per_token.mean(Kind::Double).double_value(&[])
}

#[test]
fn a_factor_of_the_logits_is_found_again() {
    for config in with_logits() {
        // The MLPs' neurons add nothing, so that a student without some of them is its teacher.
        let is_moe = config["model_type"] == "qwen2_moe";
        let silent = if is_moe {
            Role::ATTENTION_OUTPUT
        } else {
            Role::DOWN
        };
        let sizes = if is_moe {
            [("heads", 2)]
        } else {
            [("mlp", 24)]
        };
        let ward = Ward::new(sure(&config, &[silent]), &sizes);
        let right = final_gain(&ward.editor());
        for factor in [0.4, 0.98, 1.0, 1.7] {
            let mut editor = ward.editor();
            multiply(&mut editor, factor);
            ward.treat(&mut editor, FIT).unwrap();
            let found = final_gain(&editor);
            let error = super::relative(&found, &right);
            assert!(
                error < 1e-3,
                "{} times {factor}: {error}",
                ward.model.family()
            );
            let away = kl(&ward, &editor);
            assert!(
                away.abs() < 1e-5,
                "{} times {factor}: {away}",
                ward.model.family()
            );
        }
    }
}

#[test]
fn no_factor_near_it_is_nearer() {
    for config in with_logits() {
        for before in [None, Some("least_squares:writers=false")] {
            let ward = Ward::new(sure(&config, &[]), &[("depth", 2)]);
            let treatments: Vec<&str> = before.into_iter().chain([FIT]).collect();
            let start = ward.treated(&treatments[..treatments.len() - 1]).unwrap();
            let fitted = ward.treated(&treatments).unwrap();
            let least = kl(&ward, &fitted);
            let about = format!("{} {before:?}: {least}", ward.model.family());
            assert!(least <= kl(&ward, &start), "{about}");
            for factor in [0.97, 1.03] {
                let mut other = ward.treated(&treatments).unwrap();
                multiply(&mut other, factor);
                let there = kl(&ward, &other);
                assert!(least < there, "{about}, {there} at {factor}");
            }
            // One number: the rest is as it was.
            let (old, new) = (start.student().unwrap(), fitted.student().unwrap());
            for param in &start.spec().params {
                let (name, is_it) = (param.name(), param.role == Role::FINAL_NORM);
                let is_same = old.read(&name).unwrap() == new.read(&name).unwrap();
                assert!(is_same || is_it, "{about}: {name}");
            }
        }
    }
}

#[test]
fn some_windows_say_about_what_all_of_them_say() {
    let ward = Ward::new(sure(&tiny_llama(), &[]), &[("depth", 2)]);
    let factor = |of: &str| {
        let gain = final_gain(&ward.treated(&[of]).unwrap());
        (gain / final_gain(&ward.editor()))
            .mean(Kind::Double)
            .double_value(&[])
    };
    let (all, some) = (factor(FIT), factor("temperature_scaling:tokens=100"));
    assert!(all != some, "{all}");
    assert!((all / some - 1.0).abs() < 0.2, "{all}, {some}");
    // No less than a window, no more than there are.
    assert!(factor("temperature_scaling:tokens=1") > 0.0);
    assert_eq!(factor("temperature_scaling"), all);
}

#[test]
fn what_no_factor_multiplies_is_refused() {
    for (config, fit) in [
        (tiny_bert(), FIT),
        (tiny_llama(), "temperature_scaling:tokens=0"),
    ] {
        let ward = Ward::of(&config, &[("mlp", 24)]);
        let refused = ward.treated(&[fit]);
        let about = format!("{fit}, {}: {:?}", ward.model.family(), refused.err());
        assert!(about.contains("Recipe"), "{about}");
        // What is usual knows.
        assert!(ward.treated(&["auto"]).is_ok());
    }
}
