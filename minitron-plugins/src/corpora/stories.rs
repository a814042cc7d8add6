//! Short stories from a grammar of our own, so that a small model can be trained and judged without
//! any download.
//!
//! What a story says early decides what it may say later: names and pronouns, colours, the cure for
//! each trouble.

mod plots;

use std::iter;
use std::path::PathBuf;

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::Result;
use minitron_core::random::SplitMix;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::plots::{BOYS, COATS, COLOURS, GIRLS, PLACES, PLOTS};

/// Which stories to tell. No story of one side is ever told on the other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Nine casts in ten.
    #[default]
    Train,
    /// The rest.
    HeldOut,
}

/// Stories of six to nine short sentences; the seed selects them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stories {
    /// How many.
    pub n_stories: usize,
    /// From which side.
    pub split: Split,
}

impl Default for Stories {
    fn default() -> Self {
        Stories {
            n_stories: 8000,
            split: Split::Train,
        }
    }
}

#[typetag::serde(name = "stories")]
impl Corpus for Stories {
    fn extensions(&self) -> &'static [&'static str] {
        &[]
    }

    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        let mut rng = SplitMix::new(seed);
        let told = iter::repeat_with(move || Story::draw(&mut rng))
            .filter(|story| story.split == self.split);
        Ok(Box::new(
            told.take(self.n_stories)
                .map(|story| Ok(Document::Text(story.text))),
        ))
    }
}

struct Story {
    text: String,
    split: Split,
}

struct Person {
    name: &'static str,
    he: &'static str,
    him: &'static str,
    his: &'static str,
    he_capital: &'static str,
}

impl Person {
    fn draw(rng: &mut SplitMix) -> Self {
        if rng.below(2) == 0 {
            Person {
                name: pick(rng, GIRLS),
                he: "she",
                him: "her",
                his: "her",
                he_capital: "She",
            }
        } else {
            Person {
                name: pick(rng, BOYS),
                he: "he",
                him: "him",
                his: "his",
                he_capital: "He",
            }
        }
    }
}

impl Story {
    fn draw(rng: &mut SplitMix) -> Self {
        let plot_idx = rng.below(PLOTS.len());
        let (lines, rows) = PLOTS
            .get(plot_idx)
            .map_or_else(Default::default, |plot| (plot.lines, plot.rows));
        let row_idx = rng.below(rows.len());
        let row = rows.get(row_idx).copied().unwrap_or_default();
        let hero = Person::draw(rng);
        let friend =
            iter::repeat_with(|| Person::draw(rng)).find(|friend| friend.name != hero.name);
        let friend = friend.unwrap_or(Person { ..hero });
        let (colour, coat, place) = (pick(rng, COLOURS), pick(rng, COATS), pick(rng, PLACES));
        let key = format!("{plot_idx} {row_idx} {} {}", hero.name, friend.name);
        let split = if hash(&key).is_multiple_of(10) {
            Split::HeldOut
        } else {
            Split::Train
        };
        let slots = Slots {
            hero,
            friend,
            colour,
            coat,
            place,
            row,
        };
        let mut told = Vec::new();
        for line in lines {
            let chosen = replace(line, '[', ']', |choices| {
                pick(rng, &choices.split('|').collect::<Vec<_>>())
            });
            told.push(replace(&chosen, '{', '}', |name| slots.get(name)));
        }
        Story {
            text: told.join(" "),
            split,
        }
    }
}

/// What the slots of a plot's lines are filled with.
struct Slots {
    hero: Person,
    friend: Person,
    colour: &'static str,
    coat: &'static str,
    place: &'static str,
    row: &'static [&'static str],
}

impl Slots {
    /// By a slot's name; a number is a column of the plot's row, the first of them 1.
    fn get(&self, name: &str) -> &'static str {
        match name {
            "H" => self.hero.name,
            "he" => self.hero.he,
            "him" => self.hero.him,
            "his" => self.hero.his,
            "He" => self.hero.he_capital,
            "F" => self.friend.name,
            "fhe" => self.friend.he,
            "fhim" => self.friend.him,
            "Fhe" => self.friend.he_capital,
            "c" => self.colour,
            "coat" => self.coat,
            "p" => self.place,
            number => {
                let column = number.parse::<usize>().ok();
                let idx = column.and_then(|column| column.checked_sub(1));
                let word = idx.and_then(|idx| self.row.get(idx));
                word.copied().unwrap_or_default()
            }
        }
    }
}

/// Replaces what stands between two brackets.
fn replace<'a, 'b>(
    text: &'a str,
    open: char,
    close: char,
    mut with: impl FnMut(&'a str) -> &'b str,
) -> String {
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, opened)) = rest.split_once(open)
        && let Some((inside, after)) = opened.split_once(close)
    {
        done.push_str(before);
        done.push_str(with(inside));
        rest = after;
    }
    done + rest
}

fn pick<'a>(rng: &mut SplitMix, choices: &[&'a str]) -> &'a str {
    choices
        .get(rng.below(choices.len()))
        .copied()
        .unwrap_or_default()
}

fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0, |hash, byte| SplitMix::new(hash ^ u64::from(byte)).bits())
}

minitron_core::plugin! {
    Corpus for Stories {
        tag: "stories",
        summary: "short stories from a built-in grammar, no file needed",
        source: "our own",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tell(n_stories: usize, split: Split, seed: u64) -> Vec<String> {
        let corpus = Stories { n_stories, split };
        let stories = corpus
            .documents(seed)
            .unwrap()
            .map(|document| match document.unwrap() {
                Document::Text(text) => text,
                other => panic!("a story is text: {other:?}"),
            });
        stories.collect()
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(tell(50, Split::Train, 7), tell(60, Split::Train, 7)[..50]);
        assert_ne!(tell(50, Split::Train, 7), tell(50, Split::Train, 8));
        assert_eq!(tell(0, Split::Train, 7), Vec::<String>::new());
    }

    #[test]
    fn held_out_stories_are_never_told_in_training() {
        let train: HashSet<String> = tell(100_000, Split::Train, 0).into_iter().collect();
        let held_out: HashSet<String> = tell(10_000, Split::HeldOut, 1).into_iter().collect();
        assert!(train.is_disjoint(&held_out));
        assert!(held_out.len() > 5_000, "{}", held_out.len());
        let sentences: HashSet<&str> = train.iter().flat_map(|story| story.split(". ")).collect();
        assert!(sentences.len() > 5_000, "{}", sentences.len());
    }

    #[test]
    fn every_line_of_every_plot_is_filled() {
        for story in tell(20_000, Split::Train, 3) {
            assert!(!story.contains(['{', '}', '[', ']', '|']), "{story}");
            assert!(
                !story.contains("  ") && !story.contains(" .") && !story.contains(" ,"),
                "{story}"
            );
            let n_words = story.split(' ').count();
            assert!((35..=90).contains(&n_words), "{n_words}: {story}");
            assert!(story.ends_with('.') || story.ends_with('"'), "{story}");
        }
    }

    #[test]
    fn the_text_settles_the_cast() {
        // The split is drawn from plot, row, hero and friend, so each must leave its mark.
        for plot in PLOTS {
            let text = plot.lines.concat();
            assert!(text.contains("{H}") && text.contains("{F}") && text.contains("{1}"));
            let firsts: HashSet<&str> = plot.rows.iter().map(|row| row[0]).collect();
            assert_eq!(firsts.len(), plot.rows.len());
            let n_slots = (1..9)
                .take_while(|number| text.contains(&format!("{{{number}}}")))
                .count();
            assert!(plot.rows.iter().all(|row| row.len() == n_slots));
        }
    }
}
