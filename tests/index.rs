//! The one test binary: each test binary links libtorch, and an index says what belongs where.

/// Every plugin by its law, and what the built-in ones keep beyond it.
mod contract;
/// Against PyTorch and transformers, from committed fixtures.
mod golden;
/// Statements that hold without PyTorch.
mod laws;

/// Jobs on a model larger than the memory they are given.
mod bounded;
/// Conversations against transformers, and templates that do harm.
mod chat;
/// The command line as a user meets it: results, exit codes, error texts.
mod cli;
/// What programs that load written folders find there, and those programs themselves.
mod clients;
/// Every family and option against transformers, on tiny models that it makes: whole, generating,
/// and pruned.
mod families;
/// What disks and kills do to what is being written.
mod faults;
/// Model folders as people have them: what is read, said and refused.
mod folders;
/// The check of a GPU where there is none.
mod gpu;
/// The author's guide: its commands run, its links resolve.
mod guide;
/// Against the language-model evaluation harness, on real models.
mod harness;
/// Damaged and hostile files of every kind, thousands of them.
mod hostile;
/// Models fetched from a hub: verified, gone on with, refused.
mod hub;
/// Which model and tokenizer artefacts belong to, and tables of different sizes side by side.
mod identities;
/// Against transformers as it is installed, on our folders.
mod interop;
/// One test per kind of damaged input.
mod malformed;
/// What a command says of its work: log lines, traces, errors as objects, memory.
mod observing;
/// Plugins that are opened while running, and crates to begin one with.
mod plugins;
/// Several processes at one job, on this machine.
mod ranks;
/// Data and task files as the field has them: packed, marked, nested, of another type.
mod reading;
/// Pages about folders, and a running job watched.
mod report;
/// What is built in: licences, locked versions, where it comes from.
mod supply;
/// What a training outlives: signals, kills, a full disk.
mod survival;
/// The invariants of ARCHITECTURE.md that can be read off the sources.
mod tidy;
/// Plugins that break a law, and how they are caught.
mod unlawful;
/// What a run records of itself, and what differs from it later.
mod verifying;
