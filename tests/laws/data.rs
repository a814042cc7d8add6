//! What training is fed with: order, mixtures, resuming.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use minitron::{config, registry, root, some_text};
use minitron_core::checkpoint::Config;
use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;
use minitron_core::windows::Sample;
use minitron_engine::data::{
    Attend, BLOCK_TOKENS, Cursor, DataLoader, DataSpec, LoaderOptions, Order, Pack, Reading,
    TextOptions, Tokenizer, WindowSampling,
};
use proptest::prelude::*;
use serde_json::json;

/// Some data and how they are read.
#[derive(Debug)]
struct Desk {
    dir: tempfile::TempDir,
    specs: Vec<DataSpec>,
    reading: Reading,
    tokenizer: Arc<Tokenizer>,
    block_tokens: usize,
}

impl Desk {
    fn new(pack: Pack, seq_len: usize) -> Self {
        let none = config(&json!({})).unwrap();
        let tokenizer = Tokenizer::load(Path::new(""), &none, usize::MAX, true).unwrap();
        let reading = TextOptions {
            pack,
            ..TextOptions::default()
        }
        .reading(seq_len, None, 5);
        let dir = tempfile::tempdir().unwrap();
        Desk {
            dir,
            specs: Vec::new(),
            reading,
            tokenizer: Arc::new(tokenizer),
            block_tokens: BLOCK_TOKENS,
        }
    }

    /// Documents of consecutive ids, of these lengths.
    fn add(&mut self, weight: Option<f64>, range: &str, first: u32, lengths: &[usize]) {
        let path = self.dir.path().join(format!("{}.jsonl", self.specs.len()));
        let mut ids = first..;
        let line = |len: &usize| {
            json!({ "text": ids.by_ref().take(*len).collect::<Vec<u32>>() }).to_string() + "\n"
        };
        fs::write(&path, lengths.iter().map(line).collect::<String>()).unwrap();
        self.name(weight, &format!("{}{range}", path.display()));
    }

    fn name(&mut self, weight: Option<f64>, name: &str) {
        let spec: DataSpec = name.parse().unwrap();
        self.specs.push(DataSpec { weight, ..spec });
    }

    fn open(&self, cursor: Option<&Cursor>) -> Result<DataLoader> {
        let (registry, block_tokens) = (registry(), self.block_tokens);
        let Desk {
            reading,
            specs,
            tokenizer,
            ..
        } = self;
        DataLoader::open(
            &LoaderOptions {
                reading,
                specs,
                tokenizer,
                registry: &registry,
                block_tokens,
            },
            cursor,
        )
    }

    fn special_tokens(&mut self) {
        Arc::get_mut(&mut self.tokenizer).unwrap().special_tokens = Some((1_000_000, 1_000_001));
    }
}

fn any_desk() -> impl Strategy<Value = Desk> {
    let lengths = || prop::collection::vec(0..12usize, 8..40);
    let ranges = prop::sample::select(vec!["", "#1..", "#..-2", "#-6..", "#2..7", "#-7..-1"]);
    let source = (lengths(), ranges, 0.1..1.0f64);
    let packs = prop::sample::select(vec![Pack::Stream, Pack::Documents, Pack::Whole]);
    let shape = (packs, any::<bool>(), any::<bool>(), 2..6usize, 4..60usize);
    (prop::collection::vec(source, 1..4), shape).prop_map(
        |(sources, (pack, weighted, special_tokens, seq_len, block))| {
            let mut desk = Desk::new(pack, seq_len);
            // A whole document is in one block.
            desk.block_tokens = if pack == Pack::Whole {
                block.max(12)
            } else {
                block
            };
            for (idx, (mut lengths, range, weight)) in sources.into_iter().enumerate() {
                // Something is left, whatever the range.
                lengths.extend([9; 3]);
                lengths.splice(0..0, [9; 3]);
                desk.add(
                    weighted.then_some(weight),
                    range,
                    1000 * idx as u32,
                    &lengths,
                );
            }
            if special_tokens {
                desk.special_tokens();
            }
            desk
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_resumed_feed_gives_what_would_have_come(desk in any_desk()) {
        const N: usize = 120;
        let mut loader = desk.open(None).unwrap();
        let (mut pieces, mut cursors) = (Vec::new(), Vec::new());
        for _ in 0..N {
            cursors.push(loader.cursor());
            pieces.extend(loader.take(1).unwrap());
        }
        for (at, cursor) in cursors.iter().enumerate().step_by(3) {
            let written = serde_json::to_string(cursor).unwrap();
            let saved: Cursor = serde_json::from_str(&written).unwrap();
            let mut resumed = desk.open(Some(&saved)).unwrap();
            prop_assert_eq!(&resumed.cursor(), cursor);
            prop_assert_eq!(resumed.mean_width(), loader.mean_width());
            let n = (N - at).min(30);
            prop_assert_eq!(&resumed.take(n).unwrap()[..], &pieces[at..at + n], "from {}", at);
            if at % 15 == 0 {
                loader.seek(&saved).unwrap();
                let again = loader.take(n).unwrap();
                prop_assert_eq!(&again[..], &pieces[at..at + n], "back to {}", at);
            }
        }
    }

    #[test]
    fn an_epoch_visits_every_window_once_whatever_the_blocks(mut desk in any_desk()) {
        // Documents are packed block by block, so their company depends on where a block ends.
        prop_assume!(desk.reading.text.pack != Pack::Whole);
        for spec in &mut desk.specs {
            spec.weight = None;
        }
        let windows = desk.reading.windows(&desk.specs, &desk.tokenizer, &registry()).unwrap();
        let sorted = |windows: Vec<Vec<u32>>| {
            let mut windows = windows;
            windows.sort();
            windows
        };
        let tokens_of = |window| windows.window(window).unwrap().to_vec();
        let expected = sorted((0..windows.len()).map(tokens_of).collect());
        let mut loader = desk.open(None).unwrap();
        for _ in 0..3 {
            let epoch = loader.take(windows.len()).unwrap();
            let mut ids: Vec<u64> = epoch.iter().map(|sample| sample.id).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, (0..windows.len() as u64).collect::<Vec<_>>());
            let found = epoch.into_iter().map(|sample| sample.tokens).collect();
            prop_assert_eq!(&sorted(found), &expected);
        }
    }

    #[test]
    fn an_epoch_of_one_block_comes_in_the_order_of_its_windows(mut desk in any_desk()) {
        desk.block_tokens = BLOCK_TOKENS;
        for spec in &mut desk.specs {
            spec.weight = None;
        }
        let windows = desk.reading.windows(&desk.specs, &desk.tokenizer, &registry()).unwrap();
        let windows = Arc::new(windows);
        let mut order = Order::new(windows.len(), desk.reading.seed);
        let mut loader = desk.open(None).unwrap();
        let mut held = DataLoader::of_windows(windows.clone(), desk.reading.seed);
        prop_assert_eq!(loader.mean_width(), windows.mean_width());
        for position in 0..3 * windows.len() as u64 {
            let window = order.at(position).unwrap();
            let sample = Sample {
                id: window as u64,
                tokens: windows.window(window).unwrap().to_vec(),
                marks: Vec::new(),
            };
            prop_assert_eq!(&held.take(1).unwrap()[..], std::slice::from_ref(&sample));
            prop_assert_eq!(loader.take(1).unwrap(), [sample]);
        }
    }
}

/// Which of the files of [`Desk::add`] a window is from.
fn source_of(sample: &Sample) -> usize {
    sample.tokens[0] as usize / 1000
}

#[test]
fn a_mixture_takes_from_each_source_its_share() {
    let weights = [0.5, 0.2, 0.2, 0.1];
    let mut desk = Desk::new(Pack::Stream, 4);
    desk.block_tokens = 16;
    for (idx, weight) in weights.iter().enumerate() {
        // Sources end their epochs at different times.
        desk.add(
            Some(4.0 * weight),
            "",
            1000 * idx as u32,
            &vec![7; 5 + 9 * idx],
        );
    }
    let mut loader = desk.open(None).unwrap();
    let mut taken = [0usize; 4];
    for n in 1..=500 {
        taken[source_of(&loader.take(1).unwrap()[0])] += 1;
        for (taken, weight) in taken.iter().zip(weights) {
            assert!(
                (*taken as f64 - weight * n as f64).abs() < 1.0 + 1e-6,
                "{taken} of {n} at {weight}"
            );
        }
    }
}

#[test]
fn weights_are_given_to_all_or_none_and_to_training_alone() {
    let mut desk = Desk::new(Pack::Stream, 4);
    desk.add(Some(0.7), "", 0, &[9]);
    let error = desk
        .reading
        .windows(&desk.specs, &desk.tokenizer, &registry())
        .unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("weights mix text for training"),
        "{error}"
    );
    desk.add(None, "", 0, &[9]);
    let error = desk.open(None).unwrap_err();
    assert!(
        error.is_usage()
            && error
                .to_string()
                .contains("1.jsonl` has no weight, others do"),
        "{error}"
    );
}

#[test]
fn blocks_are_shuffled_apart() {
    let mut desk = Desk::new(Pack::Stream, 2);
    desk.block_tokens = 200;
    desk.add(Some(1.0), "", 0, &[400]);
    desk.add(Some(1.0), "", 1000, &[400]);
    let mut loader = desk.open(None).unwrap();
    let mut orders: BTreeMap<(usize, u64, u64), Vec<u64>> = BTreeMap::new();
    for epoch in 0..2 {
        for sample in loader.take(400).unwrap() {
            orders
                .entry((source_of(&sample), epoch, sample.id / 100))
                .or_default()
                .push(sample.id % 100);
        }
    }
    assert_eq!(orders.len(), 8);
    let all: Vec<_> = orders.values().collect();
    for (idx, order) in all.iter().enumerate() {
        assert!(all[..idx].iter().all(|other| other != order));
        assert_ne!(**order, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn what_goes_wrong_ahead_arrives_where_it_is_met() {
    let mut desk = Desk::new(Pack::Stream, 4);
    desk.block_tokens = 8;
    desk.add(None, "", 0, &[8; 5]);
    let path = desk.dir.path().join("0.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.clone() + "{\"text\": 3}\n").unwrap();
    let mut loader = desk.open(None).unwrap();
    assert_eq!(
        loader.take(10).unwrap().len(),
        10,
        "what comes before is given"
    );
    let error = loader.take(1).unwrap_err();
    assert!(
        matches!(&error, Error::Data(message) if message.contains("0.jsonl: line 6")),
        "{error}"
    );

    fs::write(&path, "{\"text\": 3}\n".to_owned() + &text).unwrap();
    assert!(desk.open(None).unwrap_err().to_string().contains("line 1"));
    let brief = Desk {
        reading: Reading {
            seq_len: 80,
            ..desk.reading.clone()
        },
        ..desk
    };
    fs::write(&path, text).unwrap();
    assert!(
        brief
            .open(None)
            .unwrap_err()
            .to_string()
            .contains("40 tokens, shorter than one window of 80")
    );
}

#[test]
fn later_windows_beyond_a_models_positions_are_refused_when_they_come() {
    let mut desk = Desk::new(Pack::Documents, 50);
    desk.block_tokens = 8;
    desk.add(None, "", 0, &[4, 4, 4, 40]);
    let mut loader = desk.open(None).unwrap();
    let options = minitron_core::spec::ModelSpec::from_config(
        &config(&{
            let mut value = minitron::tiny_llama();
            value["max_position_embeddings"] = json!(16);
            value
        })
        .unwrap(),
        &registry(),
    )
    .unwrap()
    .options;
    loader.check_fits(&options).unwrap();
    loader.take(3).unwrap();
    let error = loader.take(1).unwrap_err();
    assert!(
        error.is_usage()
            && error
                .to_string()
                .contains("40 is longer than the model's positions allow; at most 16")
    );
}

#[test]
fn a_dropped_feed_leaves_no_thread_behind() {
    let mut desk = Desk::new(Pack::Stream, 4);
    desk.block_tokens = 8;
    desk.add(Some(1.0), "", 0, &[8; 50]);
    desk.add(Some(2.0), "", 0, &[8; 50]);
    for n_windows in [0, 1, 7, 300] {
        let mut loader = desk.open(None).unwrap();
        loader.take(n_windows).unwrap();
        assert!(Arc::strong_count(&desk.tokenizer) > 1);
        drop(loader);
        // The thread held its source, and that the tokenizer.
        assert_eq!(Arc::strong_count(&desk.tokenizer), 1);
    }
}

#[test]
fn texts_are_tokenised_ahead_as_they_are_one_by_one() {
    for pack in [Pack::Stream, Pack::Documents] {
        let mut desk = Desk::new(pack, 16);
        let demo = root().join("examples/demo");
        let config = Config::load(&demo.join("config.json")).unwrap();
        desk.tokenizer = Arc::new(Tokenizer::load(&demo, &config, 512, true).unwrap());
        assert!(desk.tokenizer.eos().is_some());
        let text = some_text();
        let lines: Vec<String> = text
            .split_inclusive(". ")
            .map(|text| json!({ "text": text }).to_string())
            .collect();
        fs::write(desk.dir.path().join("a.jsonl"), lines.join("\n")).unwrap();
        fs::write(desk.dir.path().join("b.txt"), text).unwrap();
        for name in ["a.jsonl", "b.txt"] {
            let name = desk.dir.path().join(name).display().to_string();
            desk.name(None, &name);
        }
        let windows = desk
            .reading
            .windows(&desk.specs, &desk.tokenizer, &registry())
            .unwrap();
        let mut pieces = desk.open(None).unwrap().take(windows.len()).unwrap();
        pieces.sort_by_key(|sample| sample.id);
        for (window, sample) in pieces.iter().enumerate() {
            assert_eq!(sample.tokens, windows.window(window).unwrap());
        }
    }
}

#[test]
fn a_long_token_file_is_gone_on_with_in_its_middle() {
    let mut desk = Desk::new(Pack::Stream, 64);
    desk.block_tokens = 1 << 16;
    let mut random = SplitMix::new(9);
    let bytes: Vec<u8> = (0..(1 << 20) + 300_000)
        .flat_map(|_| (random.bits() as u16).to_le_bytes())
        .collect();
    let path = desk.dir.path().join("long.bin");
    fs::write(&path, bytes).unwrap();
    desk.name(None, &path.display().to_string());
    let mut loader = desk.open(None).unwrap();
    loader.take((1 << 14) + 1500).unwrap();
    let cursor = loader.cursor();
    assert_eq!(
        cursor.streams[0].start.place.item, 1,
        "in the second part of the document"
    );
    assert_eq!(
        desk.open(Some(&cursor)).unwrap().take(3000).unwrap(),
        loader.take(3000).unwrap()
    );
}

#[test]
fn data_are_known_by_what_they_hold() {
    let digest = |change: &dyn Fn(&mut Desk)| {
        let mut desk = Desk::new(Pack::Stream, 4);
        desk.add(None, "#1..", 0, &[9, 9, 9]);
        change(&mut desk);
        desk.open(None).unwrap().digest().to_owned()
    };
    let plain = digest(&|_| {});
    assert_eq!(
        plain,
        digest(&|desk| {
            let (old, new) = (
                desk.dir.path().join("0.jsonl"),
                desk.dir.path().join("other.jsonl"),
            );
            fs::rename(old, &new).unwrap();
            desk.specs[0].name = new.display().to_string();
        })
    );
    let changes: [&dyn Fn(&mut Desk); 10] = [
        &|desk| desk.reading.text.pack = Pack::Whole,
        &|desk| desk.reading.text.attend = Attend::Documents,
        &|desk| desk.specs[0].range = None,
        &|desk| desk.specs[0].weight = Some(1.0),
        &|desk| desk.reading.seq_len = 5,
        &|desk| desk.reading.text.pack = Pack::Documents,
        &|desk| desk.reading.seed = 6,
        &|desk| desk.special_tokens(),
        &|desk| desk.add(None, "", 0, &[9]),
        &|desk| {
            fs::write(
                desk.dir.path().join("0.jsonl"),
                "{\"text\": [1]}\n{\"text\": [1, 2, 3, 4, 5]}\n",
            )
            .unwrap()
        },
    ];
    let mut all: Vec<String> = changes.iter().map(|change| digest(change)).collect();
    all.push(plain);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 11);
}

#[test]
fn a_place_in_other_data_is_not_gone_to() {
    let mut desk = Desk::new(Pack::Stream, 4);
    desk.add(None, "", 0, &[9, 9, 9]);
    let mut loader = desk.open(None).unwrap();
    let cursor = Cursor {
        digest: "other".into(),
        ..loader.cursor()
    };
    assert!(loader.seek(&cursor).unwrap_err().is_usage());
    assert_eq!(
        desk.open(Some(&cursor)).unwrap().cursor(),
        loader.cursor(),
        "opened at the beginning"
    );
}

/// The first id of each window.
fn firsts(desk: &Desk, (sampling, wanted, seed): (WindowSampling, Option<usize>, u64)) -> Vec<u32> {
    let reading = Reading {
        max_windows: wanted,
        seed,
        ..desk.reading.clone()
    };
    let windows = reading.sampled(sampling);
    let windows = windows.windows(&desk.specs, &desk.tokenizer, &registry());
    let windows = windows.unwrap();
    let first = |window| windows.window(window).unwrap()[0];
    (0..windows.len()).map(first).collect()
}

#[test]
fn windows_are_taken_from_all_over_a_text() {
    for pack in [Pack::Stream, Pack::Documents, Pack::Whole] {
        let mut desk = Desk::new(pack, 8);
        desk.add(None, "", 0, &[8; 300]);
        let all = firsts(&desk, (WindowSampling::First, None, 0));
        assert_eq!(all.len(), 300);
        // More than there are, or as many: all of them, in order.
        for wanted in [None, Some(300), Some(400)] {
            assert_eq!(firsts(&desk, (WindowSampling::Spread, wanted, 0)), all);
        }
        // One of each of ten stretches of 30.
        let some = firsts(&desk, (WindowSampling::Spread, Some(10), 1));
        let stretches: Vec<u32> = some.iter().map(|first| first / 8 / 30).collect();
        assert_eq!(stretches, (0..10).collect::<Vec<u32>>(), "{pack:?}");
        assert!(some.iter().all(|first| all.contains(first)));
        assert_eq!(some, firsts(&desk, (WindowSampling::Spread, Some(10), 1)));
        assert_ne!(some, firsts(&desk, (WindowSampling::Spread, Some(10), 2)));
        // Of a long text no more than 32 times what is wanted is read.
        let few = firsts(&desk, (WindowSampling::Spread, Some(2), 1));
        assert!(few.iter().all(|first| first / 8 < 64), "{few:?}");
        assert_eq!(
            firsts(&desk, (WindowSampling::First, Some(10), 0)),
            all[..10]
        );
    }
}

/// Documents of their own are taken from all over the text too, whatever their length.
#[test]
fn documents_of_any_length_are_taken_from_all_over_a_text() {
    let mut desk = Desk::new(Pack::Documents, 8);
    // Long ones in front: sorted by length they come last.
    let lengths: Vec<usize> = (0..300).map(|place| 8 - place / 50).collect();
    desk.add(None, "", 0, &lengths);
    let mut begins: Vec<u32> = Vec::new();
    let mut begin = 0;
    for &length in &lengths {
        begins.push(begin);
        begin += length as u32;
    }
    let mut places: Vec<usize> = firsts(&desk, (WindowSampling::Spread, Some(10), 1))
        .iter()
        .map(|first| begins.iter().position(|begin| begin == first).unwrap())
        .collect();
    places.sort_unstable();
    let stretches: Vec<usize> = places.iter().map(|place| place / 30).collect();
    assert_eq!(stretches, (0..10).collect::<Vec<usize>>());
}
