//! The threads that images are read, decoded and viewed on.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Threads that take one image after another, so that the images of a batch are shared among all of
/// them. What they make does not depend on their number. Clones are the same threads; they end with
/// the last clone.
#[derive(Clone)]
pub struct Workers(Arc<ThreadPool>);

impl Workers {
    /// So many threads; 0: as many as there are cores.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|thread| format!("data-{thread}"))
            // A batch whose maker panicked is missed by whoever waits for it: no reason to abort.
            .panic_handler(drop)
            .build()
            .map_err(|error| Error::Config(format!("{threads} threads for the data cannot be started: {error}")))?;
        Ok(Self(Arc::new(pool)))
    }

    /// How many they are.
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Starts `job`, which may share its work among all threads.
    pub(super) fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(job);
    }

    /// Waits for `job`, which may share its work among all threads.
    pub(super) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.0.install(job)
    }
}
