//! What experts write, fitted one after the other.

use minitron_core::checkpoint::TensorSource;
use minitron_core::contract::Reconstruction;
use minitron_core::reconstruct::{
    Moments, ProjectionSet, ProjectionStats, ReconstructInputs, StudentEditor, Sweep,
};
use minitron_core::spec::{At, ParamKind};
use tch::{Kind, Tensor};

use super::merging::{SIZES, with_experts};
use super::reconstruction::{Ward, distance};
use super::relative;
use minitron::registry;

/// ΔW [E, C] of an expert, by a ridge.
fn delta(moments: &Moments) -> Tensor {
    let diagonal_c = moments.xx_cc.diagonal(0, 0, 1);
    let ridge = Tensor::eye(diagonal_c.size()[0], (Kind::Double, moments.xx_cc.device()))
        * (diagonal_c.mean(Kind::Double) * 1e-2);
    let lower_cc = (&moments.xx_cc + ridge).linalg_cholesky(false);
    let delta_ce = moments.rx_ec.transpose(0, 1);
    delta_ce.cholesky_solve(&lower_cc, false).transpose(0, 1)
}

/// ‖R‖² as an expert is shown it, and as it should be once it is fitted.
type Left = (ProjectionSet, f64, f64);

fn fitted(editor: &mut StudentEditor) -> Vec<Left> {
    let mut found = Vec::new();
    let visit = &mut |editor: &mut StudentEditor, stats: &ProjectionStats| {
        let at = stats.projections.at;
        if stats.projections.is_writer && matches!(at, At::Unit { .. }) {
            let role = stats.projections.roles[0];
            let delta_ec = delta(&stats.all);
            let left = stats.all.remaining(&delta_ec, None)?;
            let weight_ec = editor.read(at, role, ParamKind::Weight)?;
            editor.replace(at, role, ParamKind::Weight, &(weight_ec + delta_ec))?;
            found.push((stats.projections.clone(), stats.all.r_squared, left));
        }
        Ok(())
    };
    editor.for_each_projection(Sweep::default(), visit).unwrap();
    found
}

/// Of one pass of the layer, each expert is shown what those before it leave.
#[test]
fn an_expert_is_fitted_to_what_those_before_it_leave() {
    for config in with_experts() {
        for sizes in SIZES {
            let ward = Ward::of(&config, sizes);
            let mut editor = ward.editor();
            let found = fitted(&mut editor);
            let what = format!("{} {sizes:?}", ward.model.family());
            assert!(found.len() >= 3, "{what}");
            for (mine, next) in found.iter().zip(&found[1..]) {
                let (at, then) = (mine.0.at, next.0.at);
                if at.whole() == then.whole() {
                    assert!(
                        (mine.2 - next.1).abs() < 1e-5 * next.1,
                        "{what}: {mine:?} {next:?}"
                    );
                }
                assert!(mine.2 < mine.1, "{what}: {mine:?}");
            }
            // Run anew, the first layer that has experts lacks what the last of them left.
            let first = found[0].0.at.whole();
            let left = found.iter().rfind(|left| left.0.at.whole() == first);
            let mut again = None;
            let visit = &mut |_: &mut StudentEditor, stats: &ProjectionStats| {
                if stats.projections.is_writer && stats.projections.at.whole() == first {
                    again.get_or_insert(stats.all.r_squared);
                }
                Ok(())
            };
            editor.for_each_projection(Sweep::default(), visit).unwrap();
            let (left, again) = (left.unwrap().2, again.unwrap());
            assert!(
                (left - again).abs() < 1e-5 * again,
                "{what}: {left} {again}"
            );
            assert!(
                distance(&ward, &editor) < distance(&ward, &ward.editor()),
                "{what}"
            );
        }
    }
}

/// What waits in a folder, rows of one tensor among it, is what waits in memory.
#[test]
fn experts_that_wait_in_a_folder_are_those_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    for (number, config) in with_experts().into_iter().enumerate() {
        let ward = Ward::of(&config, SIZES[1]);
        let here = ward.treated(&["least_squares"]).unwrap();
        let place = folder.path().join(number.to_string());
        let inputs = ReconstructInputs {
            spill: Some(&place),
            ..ward.inputs()
        };
        let mut there = StudentEditor::new(inputs, ward.plan.clone()).unwrap();
        let least_squares =
            registry().build::<dyn Reconstruction>(&"least_squares".parse().unwrap());
        there.treat(least_squares.unwrap().as_ref()).unwrap();
        let (here, there) = (here.student().unwrap(), there.student().unwrap());
        for name in here.names() {
            assert_eq!(
                there.read(&name).unwrap(),
                here.read(&name).unwrap(),
                "{name}"
            );
        }
    }
}

/// A weight of an expert among others in one tensor is read and replaced as its own.
#[test]
fn a_row_of_stacked_experts_is_read_as_it_was_put() {
    let [_, stacked, _] = with_experts();
    let ward = Ward::of(&stacked, SIZES[0]);
    let mut editor = ward.editor();
    let at = At::Sublayer {
        layer: 1,
        sublayer: 1,
    };
    for (role, kind) in editor.unit_roles(at) {
        let before: Vec<Tensor> = (0..5)
            .map(|unit| editor.read(at.unit(unit), role, kind).unwrap())
            .collect();
        let changed = before[3].zeros_like() + 0.5;
        editor.replace(at.unit(3), role, kind, &changed).unwrap();
        for (unit, before) in before.iter().enumerate() {
            let now = editor.read(at.unit(unit), role, kind).unwrap();
            let expected = if unit == 3 { &changed } else { before };
            assert_eq!(relative(&now, expected), 0.0, "{role} {kind:?} {unit}");
        }
        let wrong = editor.replace(at.unit(3), role, kind, &changed.unsqueeze(0));
        let message = wrong.unwrap_err().to_string();
        assert!(message.contains("expected shape"), "{message}");
    }
}
