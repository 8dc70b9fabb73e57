//! gzip, pushed through piece by piece.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};

use crate::http::failure::{Failure, Kind};

/// The most that is decompressed in one step: deflate expands up to 1,032 times, and what comes out
/// of one step is held in memory.
const STEP: usize = 16 << 10;

/// Decompresses a file of one or more members.
pub struct Gunzip {
    decoder: MultiGzDecoder<Vec<u8>>,
}

impl Default for Gunzip {
    fn default() -> Self {
        Self { decoder: MultiGzDecoder::new(Vec::new()) }
    }
}

impl Gunzip {
    /// Takes a part of `input` off its front. What comes out is added to [`Self::output`].
    pub fn push(&mut self, input: &mut bytes::Bytes) -> Result<(), Failure> {
        let step = input.split_to(STEP.min(input.len()));
        self.decoder.write_all(&step).map_err(|error| corrupt(&error))
    }

    /// After the last input. A file that ends inside of a member shows here.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.decoder.try_finish().map_err(|error| corrupt(&error))
    }

    /// What has been decompressed and not been taken yet.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.decoder.get_mut()
    }
}

fn corrupt(error: &io::Error) -> Failure {
    // The decoder's own words, which are constant texts ("corrupt deflate stream").
    Failure::new(Kind::CorruptData, "the blob is not a whole gzip file")
        .detail(format!("Decompressing it failed: {error}."))
        .hint("It may have been cut off, or not be compressed although its name ends with .gz.")
}

/// Compresses into one member.
pub struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { encoder: GzEncoder::new(Vec::new(), Compression::default()) }
    }
}

impl Gzip {
    pub fn push(&mut self, input: &[u8]) -> Result<(), Failure> {
        self.encoder.write_all(input).map_err(failed)
    }

    /// Ends the member. Needed for the empty file, too.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.encoder.try_finish().map_err(failed)
    }

    /// What has been compressed and not been taken yet.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.encoder.get_mut()
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Kind::Local, "could not compress").detail(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(text: &[u8]) -> Vec<u8> {
        let mut gzip = Gzip::default();
        gzip.push(text).expect("compressed");
        gzip.finish().expect("finished");
        std::mem::take(gzip.output())
    }

    /// Decompresses in pieces of `size`.
    fn decompressed(input: &[u8], size: usize) -> Result<Vec<u8>, Failure> {
        let mut gunzip = Gunzip::default();
        for piece in input.chunks(size) {
            let mut piece = bytes::Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                gunzip.push(&mut piece)?;
            }
        }
        gunzip.finish()?;
        Ok(std::mem::take(gunzip.output()))
    }

    fn numbers() -> Vec<u8> {
        (0..50_000).flat_map(|number: u32| format!("{number},").into_bytes()).collect()
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let text = numbers();
        for size in [1 << 20, 10_000, 17] {
            assert_eq!(decompressed(&compressed(&text), size), Ok(text.clone()));
        }
        assert_eq!(decompressed(&compressed(b""), 1), Ok(Vec::new()));
    }

    #[test]
    fn members_follow_each_other_wherever_the_pieces_are_cut() {
        let mut file = compressed(b"one,");
        file.extend(compressed(b""));
        file.extend(compressed(b"two"));
        for size in 1..file.len() {
            assert_eq!(decompressed(&file, size), Ok(b"one,two".to_vec()), "{size}");
        }
    }

    #[test]
    fn a_cut_changed_or_longer_file_is_corrupt() {
        let whole = compressed(&numbers());
        for length in [0, 1, 5, 10, 11, whole.len() / 2, whole.len() - 8, whole.len() - 1] {
            let cut = decompressed(&whole[..length], 1000).expect_err("cut");
            assert_eq!(cut.kind, Kind::CorruptData, "{length}");
        }
        let mut changed = whole.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 0xff;
        assert_eq!(decompressed(&changed, 1000).expect_err("changed").kind, Kind::CorruptData);
        for tail in [&b"garbage"[..], b"\0", b"id,name\n1,a\n"] {
            let mut longer = whole.clone();
            longer.extend_from_slice(tail);
            assert_eq!(decompressed(&longer, 1000).expect_err("longer").kind, Kind::CorruptData, "{tail:?}");
        }
        assert_eq!(decompressed(b"id,name\n1,a\n", 1000).expect_err("plain").kind, Kind::CorruptData);
    }

    #[test]
    fn one_step_of_a_bomb_stays_small() {
        let mut bomb = bytes::Bytes::from(compressed(&vec![0; 64 << 20]));
        let mut gunzip = Gunzip::default();
        let mut total = 0;
        while !bomb.is_empty() {
            gunzip.push(&mut bomb).expect("a step");
            assert!(gunzip.output().len() <= 17 << 20);
            total += std::mem::take(gunzip.output()).len();
        }
        gunzip.finish().expect("whole");
        assert_eq!(total + gunzip.output().len(), 64 << 20);
    }
}
