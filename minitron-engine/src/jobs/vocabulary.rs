//! By which tokenizer a model and its teacher read text, and over which token ids they are
//! compared.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::identity::name_of;
use crate::data::{Tokenizer, TokenizerDifference};
use minitron_core::checkpoint::Config;
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::spec::{ModelFolder, ModelSpec};

/// A model that may be compared with a teacher.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub dir: &'a Path,
    pub config: &'a Config,
    pub spec: &'a ModelSpec,
}

impl<'a> Model<'a> {
    pub fn of(folder: &'a ModelFolder) -> Self {
        Model {
            dir: &folder.checkpoint.dir,
            config: &folder.checkpoint.config,
            spec: &folder.spec,
        }
    }

    fn name(&self) -> String {
        name_of(self.dir)
    }

    fn n_ids(&self) -> usize {
        self.spec.options.vocab
    }

    fn has_tokenizer(&self) -> bool {
        self.dir.join(FILE).is_file()
    }

    fn tokenizer(&self, dir: &Path, n_ids: usize) -> Result<Tokenizer> {
        let _span = tracing::info_span!("tokenizer").entered();
        Tokenizer::load(dir, self.config, n_ids, self.spec.options.causal)
    }
}

const FILE: &str = "tokenizer.json";

/// What the two are compared on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// Text, which a tokenizer turns into ids.
    Text,
    /// Ids, whatever they stand for.
    Tokens,
    /// Nothing: there is no text.
    Nothing,
}

/// How text becomes ids that the model, and its teacher where there is one, know.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// The model's own, or the teacher's; it refuses ids that one of the two has no row for.
    pub tokenizer: Tokenizer,
    /// The teacher's folder, where the model has no tokenizer of its own.
    pub borrowed_from: Option<PathBuf>,
    /// Ids that both models have.
    pub n_shared: usize,
}

impl Vocabulary {
    /// The model's tokenizer, compared with its teacher's.
    ///
    /// # Errors
    /// `Recipe` where the two mean other tokens by one id, unless `any_model`, or where the
    /// tokenizer has tokens that one of the models has no row for.
    pub fn open(
        context: &Context,
        model: Model,
        teacher: Option<&ModelFolder>,
        (compared, any_model): (Compared, bool),
    ) -> Result<Self> {
        let Some(teacher) = teacher.map(Model::of) else {
            let n_shared = model.n_ids();
            return Ok(Vocabulary {
                tokenizer: model.tokenizer(model.dir, n_shared)?,
                borrowed_from: None,
                n_shared,
            });
        };
        let pair = TokenizerPair {
            context,
            model,
            teacher,
            n_shared: model.n_ids().min(teacher.n_ids()),
        };
        let is_borrowed = !model.has_tokenizer() && teacher.has_tokenizer();
        let dir = if is_borrowed { teacher.dir } else { model.dir };
        if is_borrowed {
            let (own, theirs) = (model.name(), teacher.name());
            context.progress.note(&format!(
                "`{own}` has no {FILE}: that of its teacher `{theirs}` is taken"
            ));
        }
        let n_ids = match compared {
            Compared::Nothing => model.n_ids(),
            _ => {
                pair.compare(dir, compared == Compared::Text, any_model)?;
                pair.n_shared
            }
        };
        let borrowed_from = is_borrowed.then(|| dir.to_path_buf());
        Ok(Vocabulary {
            tokenizer: model.tokenizer(dir, n_ids)?,
            borrowed_from,
            n_shared: pair.n_shared,
        })
    }
}

/// A model and its teacher.
struct TokenizerPair<'a> {
    context: &'a Context<'a>,
    model: Model<'a>,
    teacher: Model<'a>,
    n_shared: usize,
}

impl TokenizerPair<'_> {
    /// Refuses or says what keeps the two from meaning the same by the same ids; `dir` holds the
    /// tokenizer in use.
    fn compare(&self, dir: &Path, is_text: bool, any_model: bool) -> Result<()> {
        let TokenizerPair {
            context,
            model,
            teacher,
            n_shared,
        } = self;
        let sizes = format!(
            "`{}` has {} rows, its teacher {}",
            model.name(),
            model.n_ids(),
            teacher.n_ids()
        );
        let is_padded = model.n_ids() != teacher.n_ids();
        if !(model.has_tokenizer() && teacher.has_tokenizer()) && dir == model.dir {
            let message =
                format!("without a {FILE} in both folders, ids are taken to mean the same to both");
            match is_padded {
                true => context.progress.warn(&format!(
                    "{message}; {sizes}: compared over the {n_shared} first"
                )),
                false => context.progress.note(&message),
            }
        } else if is_padded {
            context.progress.note(&format!(
                "{sizes}: compared over the {n_shared} token ids that both have"
            ));
        }
        if is_padded && dir.join(FILE).is_file() {
            self.check_rows(dir, &sizes)?;
        }
        if !(model.has_tokenizer() && teacher.has_tokenizer()) || self.have_one_file()? {
            return Ok(());
        }
        let own = model.tokenizer(model.dir, model.n_ids())?;
        let theirs = teacher.tokenizer(teacher.dir, teacher.n_ids())?;
        match own.difference(&theirs, *n_shared) {
            None => Ok(()),
            Some(difference) => self.judge(&difference, is_text, any_model),
        }
    }

    /// Reading large vocabularies takes longer than hashing them.
    fn have_one_file(&self) -> Result<bool> {
        let own = digest::of_file(&self.model.dir.join(FILE))?;
        Ok(own == digest::of_file(&self.teacher.dir.join(FILE))?)
    }

    /// Refuses a tokenizer with tokens in the rows that only one model has.
    fn check_rows(&self, dir: &Path, sizes: &str) -> Result<()> {
        let is_wider = self.model.n_ids() > self.teacher.n_ids();
        let larger = if is_wider { self.model } else { self.teacher };
        let tokenizer = larger.tokenizer(dir, larger.n_ids())?;
        match tokenizer.last_token(larger.n_ids()) {
            Some((id, token)) if id as usize >= self.n_shared => {
                let n_needed = id as usize + 1;
                Err(Error::Recipe(format!(
                    "{sizes}, and the tokenizer needs {n_needed} (its last token is `{token}`, id \
                     {id}); give the smaller table {n_needed} rows or more, with \
                     `resize_token_embeddings` of transformers"
                )))
            }
            _ => Ok(()),
        }
    }

    fn judge(
        &self,
        difference: &TokenizerDifference,
        is_text: bool,
        any_model: bool,
    ) -> Result<()> {
        let (own, theirs) = (self.model.name(), self.teacher.name());
        let progress = self.context.progress;
        if let Some((token, n_others)) = &difference.other_token {
            let message = format!(
                "the tokenizer of `{own}` is not that of its teacher `{theirs}`: id {} is `{}` \
                 here and `{}` there, and {n_others} ids differ in all",
                token.id, token.one, token.other
            );
            match (is_text, any_model) {
                (true, false) => {
                    return Err(Error::Recipe(format!(
                        "{message}; take models of one tokenizer, or compare them anyway with \
                         --any-model (any_model in recipes)"
                    )));
                }
                (true, true) => progress.warn(&format!(
                    "{message}; compared anyway, on text as `{own}` reads it"
                )),
                (false, _) => progress.warn(&format!(
                    "{message}; the data are token ids, which are taken as they are"
                )),
            }
        }
        if let Some(((id, token), n_others)) = &difference.unknown {
            progress.warn(&format!(
                "tokens of `{own}` that its teacher `{theirs}` does not know: {n_others}, the \
                 first is `{token}` (id {id}); what the teacher says after them means nothing"
            ));
        }
        if !difference.rules.is_empty() && is_text {
            progress.warn(&format!(
                "`{own}` and its teacher `{theirs}` cut text into tokens by other rules ({}); \
                 those of `{own}` are used",
                difference.rules.join(", ")
            ));
        }
        Ok(())
    }
}
