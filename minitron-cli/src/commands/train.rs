use minitron_core::error::Result;
use minitron_core::plan::Count;
use minitron_engine::data::DataSpec;
use minitron_engine::pipeline::{TrainOptions, TrainingOptions, train};

use crate::args::{Common, Train, Training, TrainingArgs};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Train) -> Result<()> {
    let options = TrainOptions { config: args.config.clone(), model: args.model.clone(), setup: setup(&args.training) };
    let Training { out, resume, force, .. } = &args.training;
    let report = single(common, *force, |context| train(context, &options, out, *resume))?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::facts_table)
}

/// What `train` and `distill` share.
pub fn setup(args: &Training) -> TrainingOptions {
    TrainingOptions { stop_after: args.stop_after, ..training_options(&args.training, &args.data, args.tokens) }
}

/// How something is trained on so many tokens of a text.
pub fn training_options(args: &TrainingArgs, data: &[DataSpec], tokens: Count) -> TrainingOptions {
    TrainingOptions {
        data: data.to_vec(),
        tokens,
        seq_len: args.seq_len,
        batch_size: args.batch_size,
        accumulate: args.accumulate,
        lr: args.lr,
        schedule: args.schedule,
        decay_share: args.decay_share,
        min_lr: args.min_lr,
        warmup: args.warmup,
        clip: args.clip,
        weight_decay: args.weight_decay,
        beta1: args.beta1,
        beta2: args.beta2,
        eps: args.eps,
        max_skipped: args.max_skipped,
        losses: args.losses.clone(),
        checkpoint_every: args.checkpoint_every,
        checkpoint_minutes: args.checkpoint_minutes,
        keep: args.keep,
        eval_data: args.eval_data.clone(),
        eval_every: args.eval_every,
        eval_samples: args.eval_samples,
        stop_after: None,
        text: args.files.text(),
        recompute: args.recompute,
    }
}
