//! What bytes say of token ids that have no header: whether they are ids at all, and how wide.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use super::TokenType;

/// Bytes of a sample, and how many samples are spread over the file.
const SAMPLE: u64 = 1 << 16;
const N_SAMPLES: u64 = 4;

/// Larger ids than any vocabulary has.
const BEYOND: u32 = 1 << 20;

/// Pairs that show something at all, and so many that show that small numbers in turn are no
/// chance.
const SOME: usize = 8;
const MANY: usize = 1024;

/// The halves of numbers below 2^20 are below this, and of most text some are zero.
const SMALL: u16 = 16;

/// Parts of a file.
pub(super) struct Evidence {
    /// Its first bytes.
    pub begin: Vec<u8>,
    /// Samples, each from a multiple of eight bytes on.
    samples: Vec<Vec<u8>>,
}

/// Reads some of a file of so many bytes.
///
/// # Errors
/// The system's.
pub(super) fn read(file: &mut File, n_bytes: u64) -> io::Result<Evidence> {
    let mut samples = Vec::new();
    // What a header may take is no ids, and was looked at before.
    for idx in 0..N_SAMPLES {
        let start = (n_bytes / N_SAMPLES).saturating_mul(idx) / 8 * 8;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        (&mut *file)
            .take(SAMPLE.min(n_bytes / N_SAMPLES + 8))
            .read_to_end(&mut bytes)?;
        samples.push(bytes);
    }
    let begin = samples
        .first()
        .map(|bytes| bytes.iter().take(64).copied().collect())
        .unwrap_or_default();
    Ok(Evidence { begin, samples })
}

impl Evidence {
    /// Another format that `.bin` may be, with the way out.
    ///
    /// Source: the formats' first bytes; llm.c's `train_gpt2.c` for the numbers of its header.
    pub fn other_format(&self) -> Option<String> {
        const LLM_C: [(u32, &str, &str); 2] =
            [(20_240_520, "", "u16"), (20_240_801, " of Llama 3", "u32")];
        let bytes = self.begin.first_chunk();
        let number = bytes.map(|bytes| u32::from_le_bytes(*bytes));
        let of_llm_c = LLM_C.iter().find(|(magic, ..)| number == Some(*magic));
        if let Some((magic, model, width)) = of_llm_c {
            return Some(format!(
                "the header of llm.c{model} (magic {magic}, 1024 bytes); cut it off with `tail -c \
                 +1025` and read the rest as {width}"
            ));
        }
        let found = match self.begin.as_slice() {
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a NumPy array; name it .npy",
            [b'M', b'M', b'I', b'D', b'I', b'D', b'X', ..] => {
                "an index of Megatron's; name it .idx"
            }
            [b'P', b'K', 3, 4, ..] => "a zip archive, as PyTorch writes weights; give token ids",
            [0x80, 2, b'c' | b'}' | 0x8A, ..] => {
                "a pickle, as PyTorch writes weights; give token ids"
            }
            [b'G', b'G', b'U', b'F', ..] => "a GGUF model; give token ids",
            [0x28, 0xB5, 0x2F, 0xFD, ..] => "zstd data; unpack it with `zstd -d` first",
            [b'P', b'A', b'R', b'1', ..] => "a Parquet file; name it .parquet",
            _ => return None,
        };
        Some(found.to_owned())
    }

    /// Why the ids are not of this type, naming the one that they seem to be.
    pub fn contradiction(&self, stated: TokenType) -> Option<String> {
        match stated {
            TokenType::U16 => self.as_u16(),
            TokenType::U32 => self.as_u32(),
        }
    }

    /// Of wider ids read as u16, every second one is the small half of one.
    fn as_u16(&self) -> Option<String> {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        let quads = self.samples.iter().flat_map(|b| b.as_chunks::<4>().0);
        for quad in quads {
            let [a, b, c, d] = *quad;
            low.push(u16::from_le_bytes([a, b]));
            high.push(u16::from_le_bytes([c, d]));
        }
        let (largest_low, largest_high) = (largest(&low), largest(&high));
        let n_large = low.iter().filter(|half| **half >= SMALL).count();
        let is_zero = low.len() >= SOME && largest_high == 0 && largest_low > 0;
        let is_small = low.len() >= MANY
            && largest_high < SMALL
            && high.contains(&0)
            && n_large * 2 >= low.len();
        if !is_zero && !is_small {
            return None;
        }
        if self.is_wider() {
            return Some(wider("u16"));
        }
        let what = if is_zero {
            "0".to_owned()
        } else {
            format!("below {SMALL}")
        };
        Some(format!(
            "read as u16, every second id is {what}; these are u32 ids, so read them with \
             `--token-type u32`"
        ))
    }

    /// Of u16 ids read as u32, two make one, which is larger than any vocabulary.
    fn as_u32(&self) -> Option<String> {
        if self.is_wider() {
            return Some(wider("u32"));
        }
        let quads = self
            .samples
            .iter()
            .flat_map(|bytes| bytes.as_chunks::<4>().0);
        let largest = quads
            .map(|quad| u32::from_le_bytes(*quad))
            .max()
            .unwrap_or(0);
        (largest >= BEYOND).then(|| {
            format!(
                "read as u32, an id is {largest}, which no vocabulary has; these seem to be u16 \
                 ids, so read them with `--token-type u16`"
            )
        })
    }

    /// Whether ids take eight bytes, of which the upper four are zero.
    fn is_wider(&self) -> bool {
        let octets: Vec<[u8; 8]> = self
            .samples
            .iter()
            .flat_map(|bytes| bytes.as_chunks::<8>().0)
            .copied()
            .collect();
        let is_upper_zero = octets.iter().all(|octet| matches!(octet, [.., 0, 0, 0, 0]));
        octets.len() >= SOME
            && is_upper_zero
            && octets.iter().any(|octet| u64::from_le_bytes(*octet) > 0)
    }
}

fn largest(halves: &[u16]) -> u16 {
    halves.iter().copied().max().unwrap_or(0)
}

fn wider(stated: &str) -> String {
    format!(
        "read as {stated}, ids are zero again and again; these are 8-byte ids, so save them as \
         uint32, or as .npy"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: Vec<u8>) -> Evidence {
        let begin = bytes.iter().take(64).copied().collect();
        Evidence {
            begin,
            samples: vec![bytes],
        }
    }

    fn u16s(ids: impl Iterator<Item = u32>) -> Evidence {
        of(ids.flat_map(|id| (id as u16).to_le_bytes()).collect())
    }

    fn u32s(ids: impl Iterator<Item = u32>) -> Evidence {
        of(ids.flat_map(u32::to_le_bytes).collect())
    }

    /// Spread over a vocabulary, smaller ones more often.
    fn text(n: u32, vocab: u64) -> impl Iterator<Item = u32> {
        let share = |idx: u32| f64::from(idx.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24);
        (0..n).map(move |idx| (share(idx).powi(3) * vocab as f64) as u32)
    }

    #[test]
    fn ids_of_their_type_are_left_alone() {
        for vocab in [4, 16, 64, 512, 50_257, 65_536] {
            for n in [0, 1, 7, 40, 5000] {
                assert_eq!(
                    u16s(text(n, vocab)).contradiction(TokenType::U16),
                    None,
                    "{n} of {vocab}"
                );
            }
        }
        for vocab in [4, 64, 50_257, 128_256, 262_144, 1 << 20] {
            for n in [0, 1, 7, 40, 5000] {
                assert_eq!(
                    u32s(text(n, vocab)).contradiction(TokenType::U32),
                    None,
                    "{n} of {vocab}"
                );
            }
        }
        assert_eq!(
            u16s([5, 0].into_iter().cycle().take(9)).contradiction(TokenType::U16),
            None,
            "too few"
        );
        assert_eq!(
            u16s([0; 500].into_iter()).contradiction(TokenType::U16),
            None
        );
        assert_eq!(
            u16s([7, 300].into_iter().cycle().take(5000)).contradiction(TokenType::U16),
            None
        );
        assert_eq!(
            u16s([300, 7].into_iter().cycle().take(5000)).contradiction(TokenType::U16),
            None
        );
    }

    #[test]
    fn ids_of_another_type_are_found_out() {
        for vocab in [64, 512, 50_257, 128_256, 262_144] {
            let found = u32s(text(5000, vocab))
                .contradiction(TokenType::U16)
                .unwrap();
            assert!(
                found.contains("read as u16") && found.contains("--token-type u32"),
                "{vocab}: {found}"
            );
        }
        for vocab in [64, 512, 50_257] {
            let found = u16s(text(5000, vocab))
                .contradiction(TokenType::U32)
                .unwrap();
            assert!(
                found.contains("read as u32") && found.contains("--token-type u16"),
                "{vocab}: {found}"
            );
        }
        let wide = || {
            of(text(100, 50_257)
                .flat_map(|id| u64::from(id).to_le_bytes())
                .collect())
        };
        for stated in [TokenType::U16, TokenType::U32] {
            assert!(wide().contradiction(stated).unwrap().contains("8-byte ids"));
        }
        assert!(
            u32s(text(16, 64)).contradiction(TokenType::U16).is_some(),
            "a short file"
        );
    }

    #[test]
    fn other_formats_are_named() {
        for (bytes, expected) in [
            (
                &20_240_520_u32.to_le_bytes()[..],
                "header of llm.c (magic 20240520, 1024 bytes); cut it off",
            ),
            (&20_240_801_u32.to_le_bytes(), "read the rest as u32"),
            (b"\x93NUMPY\x01\0", "name it .npy"),
            (b"PK\x03\x04", "a zip archive"),
            (b"GGUF\x03\0\0\0", "a GGUF model"),
        ] {
            assert!(
                of(bytes.to_vec())
                    .other_format()
                    .unwrap()
                    .contains(expected)
            );
        }
        assert!(
            of(vec![1, 0, 2, 0]).other_format().is_none()
                && of(Vec::new()).other_format().is_none()
        );
    }
}
