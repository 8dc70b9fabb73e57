//! Room for tokens of any length in a fixed block of memory: a token lies in as many chunks as it needs.
//!
//! Tokens have 1 to 64 KiB and most have 2, so slots of the longest length would waste nearly all of it.

use zeroize::{Zeroize, Zeroizing};

/// Bytes of a token in one chunk.
pub const CHUNK: usize = 1024 - size_of::<u32>();

/// All zeros is a free chunk.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Chunk {
    /// [`FREE`], [`LAST`], or one more than the index of the token's next chunk.
    next: u32,
    bytes: [u8; CHUNK],
}

const FREE: u32 = 0;
const LAST: u32 = u32::MAX;

/// Where a token lies. All zeros is nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Place {
    /// One more than the index of its first chunk.
    first: u32,
    length: u32,
}

impl Place {
    pub fn is_empty(self) -> bool {
        self.length == 0
    }
}

/// Stores bytes; `None` where they have no room.
pub fn store(pool: &mut [Chunk], bytes: &[u8]) -> Option<Place> {
    let pieces = bytes.chunks(CHUNK);
    let free = || pool.iter().enumerate().filter(|(_, chunk)| chunk.next == FREE).map(|(at, _)| at);
    let places: Vec<usize> = free().take(pieces.len()).collect();
    if bytes.is_empty() || places.len() < pieces.len() {
        return None;
    }
    let number = |at: usize| u32::try_from(at + 1).unwrap_or(FREE);
    for (nth, (at, piece)) in places.iter().zip(pieces).enumerate() {
        let chunk = pool.get_mut(*at)?;
        chunk.bytes[..piece.len()].copy_from_slice(piece);
        chunk.next = places.get(nth + 1).map_or(LAST, |next| number(*next));
    }
    Some(Place { first: number(*places.first()?), length: u32::try_from(bytes.len()).ok()? })
}

/// A copy of what was stored there.
pub fn load(pool: &[Chunk], place: Place) -> Option<Zeroizing<Vec<u8>>> {
    let length = place.length as usize;
    // With its full room from the start it never moves: a moved buffer leaves a copy unwiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    let mut next = place.first;
    while bytes.len() < length {
        let chunk = pool.get((next as usize).checked_sub(1)?)?;
        let left = length - bytes.len();
        bytes.extend_from_slice(&chunk.bytes[..CHUNK.min(left)]);
        next = chunk.next;
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// Overwrites what was stored there and frees its chunks.
pub fn wipe(pool: &mut [Chunk], place: Place) {
    let mut next = place.first;
    // Zeros end the walk, so that it ends even where a chain should be broken.
    while let Some(chunk) = (next as usize).checked_sub(1).and_then(|at| pool.get_mut(at)) {
        next = std::mem::replace(&mut chunk.next, FREE);
        chunk.bytes.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(chunks: usize) -> Vec<Chunk> {
        vec![Chunk { next: FREE, bytes: [0; CHUNK] }; chunks]
    }

    fn text(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8 ^ seed).collect()
    }

    #[test]
    fn tokens_of_every_length_come_back_whole_and_share_the_room() {
        let mut pool = pool(10);
        for length in [1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK] {
            let place = store(&mut pool, &text(length, 7)).expect("room");
            assert_eq!(*load(&pool, place).expect("a token"), text(length, 7), "{length}");
            wipe(&mut pool, place);
        }
        let first = store(&mut pool, &text(3 * CHUNK, 1)).expect("room");
        let second = store(&mut pool, &text(3 * CHUNK, 2)).expect("room");
        wipe(&mut pool, first);
        // Longer than any piece that is free in one go.
        let third = store(&mut pool, &text(6 * CHUNK + 1, 3)).expect("room");
        assert_eq!(*load(&pool, second).expect("a token"), text(3 * CHUNK, 2));
        assert_eq!(*load(&pool, third).expect("a token"), text(6 * CHUNK + 1, 3));
    }

    #[test]
    fn what_has_no_room_leaves_everything_as_it_was() {
        let mut pool = pool(4);
        let kept = store(&mut pool, &text(3 * CHUNK, 1)).expect("room");
        assert_eq!(store(&mut pool, &text(CHUNK + 1, 2)), None);
        assert_eq!(store(&mut pool, &[]), None);
        assert_eq!(*load(&pool, kept).expect("a token"), text(3 * CHUNK, 1));
        store(&mut pool, &text(CHUNK, 3)).expect("the last chunk is still free");
    }

    #[test]
    fn nothing_is_left_of_a_wiped_token() {
        let mut pool = pool(4);
        let place = store(&mut pool, &text(2 * CHUNK + 9, 0xAA)).expect("room");
        wipe(&mut pool, place);
        assert!(pool.iter().all(|chunk| chunk.next == FREE && chunk.bytes.iter().all(|byte| *byte == 0)));
        wipe(&mut pool, Place::default());
        assert!(load(&pool, Place::default()).is_none());
    }
}
