//! Random numbers by what they are for, not by when they are drawn: that is what makes a run
//! repeatable with any number of threads and resumable at any iteration.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for; streams of different purposes have nothing in common.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Synthetic = 1,
    Split = 2,
    Shuffle = 3,
    Augment = 4,
}

/// The random numbers of one `purpose`, for one `part` (epoch, split) and one `index` in it.
pub(super) fn stream(seed: u64, purpose: Purpose, part: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, part]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}
