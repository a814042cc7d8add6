//! Token ids, already made.

mod evidence;
mod head;
mod parts;

use std::fmt::Display;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use self::parts::parts;
use minitron_core::contract::{Corpus, Documents};
use minitron_core::error::{Error, IoContext as _, Result};
use npyz::{DType, Deserialize as Element, NpyFile, TypeChar};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Width of one id in a `.bin` file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenType {
    /// Two bytes.
    #[default]
    U16,
    /// Four bytes.
    U32,
}

impl TokenType {
    fn width(self) -> u64 {
        match self {
            TokenType::U16 => 2,
            TokenType::U32 => 4,
        }
    }
}

/// Ids of a part.
const PART: u64 = 1 << 20;

/// A file of token ids as one document, read in parts of a million; an empty one holds none.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// A `.npy` file with a 1-D array of integers, or a `.bin` file of bare little-endian ids.
    pub path: PathBuf,
    /// How wide the ids of a `.bin` file are; a `.npy` file says it itself.
    #[serde(default)]
    pub token_type: TokenType,
}

#[typetag::serde(name = "tokens")]
impl Corpus for Tokens {
    fn extensions(&self) -> &'static [&'static str] {
        &["npy", "bin"]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        self.documents_from(seed, 0)
    }

    fn documents_from(&self, _seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let file = super::open(&self.path)?;
        let first = n_items.saturating_mul(PART);
        if super::ends(&self.path, &["npy"]) {
            self.read_npy(file, first)
        } else {
            self.read_bin(file, first)
        }
    }
}

impl Tokens {
    fn read_bin(&self, mut file: File, first: u64) -> Result<Documents<'_>> {
        if super::megatron::has_index(&self.path) {
            let (own, other) = (self.path.display(), self.path.with_extension("idx"));
            let message = format!(
                "`{own}` is one half of a Megatron pair; name the other, `{}`, to read both",
                other.display()
            );
            return Err(Error::Recipe(message));
        }
        let n_bytes = file.metadata().at_path(&self.path)?.len();
        let width = self.token_type.width();
        self.check_bin(&mut file, n_bytes)?;
        file.seek(SeekFrom::Start(first.saturating_mul(width)))
            .at_path(&self.path)?;
        Ok(parts(n_bytes / width, first, move |ids| {
            let mut bytes = Vec::new();
            let n_wanted = ids.end.saturating_sub(ids.start).saturating_mul(width);
            (&file)
                .take(n_wanted)
                .read_to_end(&mut bytes)
                .map_err(|e| super::read_error(&self.path, e))?;
            let tokens: Vec<u32> = match self.token_type {
                TokenType::U16 => bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|pair| u32::from(u16::from_le_bytes(*pair)))
                    .collect(),
                TokenType::U32 => bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|quad| u32::from_le_bytes(*quad))
                    .collect(),
            };
            let n_found = ids.start.saturating_add(tokens.len() as u64);
            if n_found == ids.end {
                Ok(tokens)
            } else {
                Err(self.cut_short(n_bytes / width, n_found))
            }
        }))
    }

    /// Bare ids say nothing of themselves, but their bytes do.
    fn check_bin(&self, file: &mut File, n_bytes: u64) -> Result<()> {
        let found = evidence::read(file, n_bytes).map_err(|e| super::read_error(&self.path, e))?;
        super::check_fetched(&self.path, &found.begin)?;
        if let Some(other) = found.other_format() {
            return Err(self.bad(format!("expected bare token ids, got {other}")));
        }
        let width = self.token_type.width();
        if !n_bytes.is_multiple_of(width) {
            return Err(self.bad(format!(
                "expected little-endian ids of {width} bytes each, got {n_bytes} bytes, which is \
                 no multiple of it; choose the right `--token-type`, or copy the file again"
            )));
        }
        found
            .contradiction(self.token_type)
            .map_or(Ok(()), |contradiction| Err(self.bad(contradiction)))
    }

    fn read_npy(&self, mut file: File, first: u64) -> Result<Documents<'_>> {
        self.check_head(&mut file)?;
        file.rewind().at_path(&self.path)?;
        let npy = NpyFile::new(BufReader::new(file)).map_err(|e| {
            self.bad(format!(
                "expected a .npy file with a 1-D array of integers, got a bad header: {e}"
            ))
        })?;
        let dtype = npy.dtype();
        let kind = match &dtype {
            DType::Plain(element) => (element.type_char(), element.size_field()),
            _ => (TypeChar::Object, 0),
        };
        match kind {
            (TypeChar::Uint, 1) => self.values::<u8>(npy, first),
            (TypeChar::Uint, 2) => self.values::<u16>(npy, first),
            (TypeChar::Uint, 4) => self.values::<u32>(npy, first),
            (TypeChar::Uint, 8) => self.values::<u64>(npy, first),
            (TypeChar::Int, 1) => self.values::<i8>(npy, first),
            (TypeChar::Int, 2) => self.values::<i16>(npy, first),
            (TypeChar::Int, 4) => self.values::<i32>(npy, first),
            (TypeChar::Int, 8) => self.values::<i64>(npy, first),
            _ => {
                let found = dtype.descr();
                Err(self.bad(format!(
                    "expected token ids of an integer type, got {found}; save them as uint16 or \
                     uint32"
                )))
            }
        }
    }

    /// Refuses what is not one-dimensional, or a long header, before `npyz` makes room for it.
    fn check_head(&self, file: &mut File) -> Result<()> {
        let mut bytes = Vec::new();
        file.take(head::LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|e| super::read_error(&self.path, e))?;
        head::objection(&bytes).map_or(Ok(()), |objection| Err(self.bad(objection)))
    }

    fn values<T>(&self, npy: NpyFile<BufReader<File>>, first: u64) -> Result<Documents<'_>>
    where
        T: Element + TryInto<u32> + Display + Copy + 'static,
    {
        let n_ids = npy.len();
        let mut values = npy
            .data::<T>()
            .map_err(|e| self.bad(format!("expected token ids of an integer type: {e}")))?;
        values.seek_to(first.min(n_ids)).at_path(&self.path)?;
        Ok(parts(n_ids, first, move |ids| {
            let mut tokens = Vec::new();
            for (idx, value) in ids.zip(&mut values) {
                let value = value.map_err(|e| match e.raw_os_error() {
                    Some(_) => Error::io(&self.path, e),
                    None => self.cut_short(n_ids, idx),
                })?;
                tokens.push(value.try_into().map_err(|_| {
                    self.bad(format!(
                        "expected ids from 0 to {}, got {value} at index {idx}; mend the array",
                        u32::MAX
                    ))
                })?);
            }
            Ok(tokens)
        }))
    }

    fn cut_short(&self, n_expected: u64, n_found: u64) -> Error {
        self.bad(format!(
            "expected {n_expected} ids, got {n_found} before the end; copy the file again"
        ))
    }

    fn bad(&self, message: impl Display) -> Error {
        super::bad(&self.path, message)
    }
}

minitron_core::plugin! {
    Corpus for Tokens {
        tag: "tokens",
        summary: "token ids: a 1-D integer array (.npy) or bare little-endian u16 or u32 (.bin)",
        source: "NumPy enhancement proposal 1 (NEP 1)",
    }
}

#[cfg(test)]
mod tests {
    use npyz::WriterBuilder as _;

    use super::*;
    use minitron_core::contract::Document;

    fn read(name: &str, bytes: &[u8], token_type: TokenType) -> Result<Vec<Document>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Tokens { path, token_type }.documents(0)?.collect()
    }

    fn npy<T: npyz::AutoSerialize + Copy>(values: &[T], shape: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(&mut bytes)
            .begin_nd()
            .unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn error(name: &str, bytes: &[u8]) -> String {
        read(name, bytes, TokenType::U16).unwrap_err().to_string()
    }

    #[test]
    fn integer_arrays_of_any_width_are_one_document() {
        let expected = [Document::Tokens(vec![1, 2, 200])];
        let files = [
            npy(&[1_u8, 2, 200], &[3]),
            npy(&[1_u16, 2, 200], &[3]),
            npy(&[1_u32, 2, 200], &[3]),
            npy(&[1_i32, 2, 200], &[3]),
            npy(&[1_i64, 2, 200], &[3]),
        ];
        for bytes in files {
            assert_eq!(read("a.npy", &bytes, TokenType::U16).unwrap(), expected);
        }
        assert_eq!(
            read("a.npy", &npy::<u16>(&[], &[0]), TokenType::U16).unwrap(),
            []
        );
    }

    #[test]
    fn bare_ids_take_their_width_from_the_parameter() {
        let bytes = [1, 0, 2, 0, 255, 255, 1, 0];
        assert_eq!(
            read("a.bin", &bytes, TokenType::U16).unwrap(),
            [Document::Tokens(vec![1, 2, 65535, 1])]
        );
        assert_eq!(
            read("a.bin", &bytes, TokenType::U32).unwrap(),
            [Document::Tokens(vec![0x0002_0001, 0x0001_ffff])]
        );
        assert_eq!(read("a.bin", b"", TokenType::U16).unwrap(), []);
        assert!(error("a.bin", &[1, 2, 3]).contains("got 3 bytes, which is no multiple"));
        let odd = read("a.bin", &[0; 6], TokenType::U32)
            .unwrap_err()
            .to_string();
        assert!(odd.contains("ids of 4 bytes each, got 6 bytes"), "{odd}");
    }

    #[test]
    fn arrays_that_hold_no_ids_are_refused() {
        assert!(error("a.npy", &npy(&[1_i64, -7], &[2])).contains("got -7 at index 1"));
        assert!(error("a.npy", &npy(&[1_i64 << 32], &[1])).contains("got 4294967296 at index 0"));
        assert!(error("a.npy", &npy(&[1.0_f32], &[1])).contains("got '<f4'; save them as"));
        assert!(
            error("a.npy", &npy(&[1_u16, 2, 3, 4], &[2, 2]))
                .contains("got 2 dimensions of shape (2")
        );
        assert!(error("a.npy", b"PK\x03\x04").contains("numpy.save"));
        let whole = npy(&[1_u16, 2, 3], &[3]);
        assert!(
            error("a.npy", &whole[..whole.len() - 1])
                .contains("expected 3 ids, got 2 before the end")
        );
        assert!(error("a.npy", &whole[..30]).contains("without its shape"));
        assert!(error("a.npy", &whole[..126]).contains("bad header"));
    }

    #[test]
    fn a_long_file_comes_in_parts_and_can_be_entered_at_each() {
        let ids: Vec<u16> = (0..2 * PART + 5).map(|id| id as u16).collect();
        let dir = tempfile::tempdir().unwrap();
        let bin: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        for (name, bytes) in [("a.bin", bin), ("a.npy", npy(&ids, &[ids.len() as u64]))] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let corpus = Tokens {
                path,
                token_type: TokenType::U16,
            };
            let all: Vec<Document> = corpus.documents(0).unwrap().collect::<Result<_>>().unwrap();
            let lengths: Vec<usize> = all.iter().map(length).collect();
            assert_eq!(lengths, [PART as usize, PART as usize, 5]);
            assert!(matches!(
                all[..],
                [Document::Part(_), Document::Part(_), Document::Tokens(_)]
            ));
            for n_items in 0..5 {
                let rest = corpus
                    .documents_from(0, n_items as u64)
                    .unwrap()
                    .collect::<Result<Vec<_>>>()
                    .unwrap();
                assert!(rest == all[n_items.min(3)..], "{name} from {n_items}");
            }
        }
    }

    fn length(document: &Document) -> usize {
        match document {
            Document::Tokens(ids) => ids.len(),
            Document::Part(part) => length(part),
            Document::Text(_) | Document::Example(_) => panic!("ids are no text"),
        }
    }

    #[test]
    fn sizes_that_overflow_are_an_error_not_a_panic() {
        let mut bytes = npy(&[1_u16], &[1]);
        let huge = b"'shape': (9223372036854775807, 9223372036854775807)";
        let at = bytes
            .windows(8)
            .position(|window| window == b"'shape':")
            .unwrap();
        bytes[at..at + huge.len()].copy_from_slice(huge);
        assert!(error("a.npy", &bytes).contains("2 dimensions"));
    }
}
