//! How large blocks and ranges are, and how many move at once.

use crate::http::failure::{Failure, Kind};

/// Azure's limit for one blob.
const MOST_BLOCKS: usize = 50_000;

/// What blocks grow to. Azure takes 4,000 MiB, which no backend should hold.
const LARGEST: usize = 64 << 20;

/// So many blocks of one size, then twice the size: a small export stays in small blocks, and every
/// first size from 1 MiB on reaches 2 TiB.
const BLOCKS_PER_SIZE: usize = 2_500;

/// What may be in flight; as much again may be queued, in the backend's hands or being filled.
const IN_FLIGHT: usize = 24 << 20;

/// More connections than these bring nothing.
const MOST_IN_FLIGHT: usize = 6;

/// The size of block number `index` (from 0) when the first one has `first` bytes. Fails with 54000
/// behind the last block that a blob can have.
pub fn size(index: usize, first: usize) -> Result<usize, Failure> {
    if index >= MOST_BLOCKS {
        return Err(Failure::new(Kind::TooLarge, "the blob would be too large")
            .detail(format!("A blob has at most {MOST_BLOCKS} blocks, and blocks grow to {} MB.", LARGEST >> 20))
            .hint("Raise azure_storage.blob_block_size_mb, or write several blobs."));
    }
    let doubled = u32::try_from(index / BLOCKS_PER_SIZE).unwrap_or(u32::MAX);
    let grown = first.checked_shl(doubled.min(16)).unwrap_or(LARGEST);
    Ok(grown.clamp(first.min(LARGEST), LARGEST))
}

/// How many blocks or ranges of this size move at once.
pub fn parallel(size: usize) -> usize {
    (IN_FLIGHT / size.max(1)).clamp(1, MOST_IN_FLIGHT)
}

/// The size of a range for a download: a user's larger blocks would only cost memory.
pub fn range(block: usize) -> usize {
    block.min(8 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn reach(first: usize) -> usize {
        (0..MOST_BLOCKS).map(|index| size(index, first).expect("a size")).sum()
    }

    #[test]
    fn every_first_size_reaches_two_tebibytes_in_blocks_of_at_most_64_mib() {
        for first in (1..=64).map(|mib| mib * MIB) {
            assert_eq!(size(0, first), Ok(first));
            assert!(reach(first) >= 2 << 40, "{first}");
            let mut before = first;
            for index in 0..MOST_BLOCKS {
                let now = size(index, first).expect("a size");
                assert!(now >= before && now <= LARGEST);
                before = now;
            }
        }
    }

    #[test]
    fn behind_the_last_block_the_setting_is_named() {
        let refused = size(MOST_BLOCKS, 8 * MIB).expect_err("too many");
        assert_eq!(refused.kind, Kind::TooLarge);
        assert!(refused.hint.is_some_and(|hint| hint.contains("blob_block_size_mb")));
    }

    #[test]
    fn memory_is_bounded_and_fewer_move_as_blocks_grow() {
        assert_eq!(parallel(8 * MIB), 3);
        assert_eq!(parallel(64 * MIB), 1);
        assert_eq!(parallel(MIB), MOST_IN_FLIGHT);
        assert_eq!(parallel(0), MOST_IN_FLIGHT);
        for size in (1..=8).map(|mib| mib * MIB) {
            // In flight, one queued, one in the backend's hands.
            assert!((parallel(size) + 2) * size <= 48 * MIB);
        }
    }
}
