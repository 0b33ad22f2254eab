//! The engine's threads: parallel loops, one inside the other.
//!
//! A loop is a *job* on a board that the whole team sees. The thread that runs into it works on it itself, and
//! threads with nothing to do join in; each takes the next item when it is done with one, so a thread that
//! gets less of its core takes fewer. Nobody waits for a thread that holds no item.
//!
//! A thread with nothing to do spins for a moment, for the next loop of a pass comes within microseconds, and
//! then sleeps: other work may want its core, and that may be all that the thread it waits for lacks.

mod denormals;

use std::any::Any;
use std::hint::spin_loop;
use std::io;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use denormals::flush_denormals;

/// How long a thread with nothing to do spins before it sleeps: longer than most of what lies between the loops of
/// a pass, and a small part of the system's time slices.
const SPIN: Duration = Duration::from_micros(20);

/// Threads that share loops: those of its own, and whichever calls [`for_each`](Self::for_each).
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `threads`, the caller's among them; 0 for one a core.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let threads = if threads == 0 { available_parallelism()?.get() } else { threads };
        let mut team = Self { shared: Arc::default(), workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let work = move || {
                let _flushed = flush_denormals();
                drop(shared.help(shared.board(), None));
            };
            team.workers.push(Builder::new().name(format!("resnet-{index}")).spawn(work)?);
        }
        Ok(team)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Does `work` on every item, each on one of the threads, and returns when all are done. Items are taken in
    /// order, with denormal numbers flushed to zero.
    ///
    /// # Panics
    /// When `work` does, once the other threads are done; items may then be left.
    pub fn for_each<I: Iterator + Send>(&self, items: I, work: impl Fn(I::Item) + Sync) {
        let _flushed = flush_denormals();
        let most = items.size_hint().1.unwrap_or(usize::MAX);
        if self.workers.is_empty() || most < 2 {
            return items.for_each(work);
        }
        let items = Mutex::new(items);
        let next = || locked(&items).next();
        let work_on_the_rest = || {
            while let Some(item) = next() {
                work(item);
            }
        };
        self.shared.share(&work_on_the_rest, self.workers.len().min(most - 1));
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.close();
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker catches panics");
        }
    }
}

/// A loop, to be called by every thread that works on it: returns when no item is left to take.
type Loop<'a> = dyn Fn() + Sync + 'a;

/// Names a job; later jobs have larger ones.
type Ticket = u64;

/// A loop on the board, until the thread that put it there, its owner, takes it down.
struct Job {
    ticket: Ticket,
    work: &'static Loop<'static>,
    /// Threads that may join still.
    wanted: usize,
    /// Threads that joined and are not done.
    helpers: usize,
    panics: Vec<Box<dyn Any + Send>>,
}

/// The jobs, and the threads that have none.
#[derive(Default)]
struct Board {
    /// By ticket.
    jobs: Vec<Job>,
    last_ticket: Ticket,
    /// Threads that spin.
    spinning: usize,
    /// Workers that sleep and were not called.
    asleep: usize,
    /// Calls that no worker has answered.
    calls: usize,
    /// Owners that sleep.
    waiting: usize,
    /// Whether the workers should end.
    closed: bool,
}

impl Board {
    fn job(&mut self, ticket: Ticket) -> &mut Job {
        let index = self.index(ticket);
        &mut self.jobs[index]
    }

    fn index(&self, ticket: Ticket) -> usize {
        self.jobs.binary_search_by_key(&ticket, |job| job.ticket).expect("a job stays until its owner removes it")
    }

    /// Whether there is nothing to wait for: for an owner, its helpers, and for a worker, the end of the team.
    fn is_done(&mut self, own: Option<Ticket>) -> bool {
        own.map_or(self.closed, |ticket| self.job(ticket).helpers == 0)
    }

    /// Joins the first job that wants help. An owner joins none that is older than its own: its job may be part of
    /// an item of that one, which would then wait for another item as long.
    fn join(&mut self, own: Option<Ticket>) -> Option<(Ticket, &'static Loop<'static>)> {
        let job = self.jobs.iter_mut().find(|job| job.wanted > 0 && Some(job.ticket) > own)?;
        job.wanted -= 1;
        job.helpers += 1;
        Some((job.ticket, job.work))
    }

    /// Notes calls for as many workers as jobs want beyond those that spin or were called; gives their number.
    fn call(&mut self) -> usize {
        let wanted: usize = self.jobs.iter().map(|job| job.wanted).sum();
        let calls = wanted.saturating_sub(self.spinning + self.calls).min(self.asleep);
        self.asleep -= calls;
        self.calls += calls;
        calls
    }
}

/// What the threads of a team share.
#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    /// Changes with the board, where threads that spin should look at it.
    news: AtomicUsize,
    /// Wakes workers.
    called: Condvar,
    /// Wakes owners.
    finished: Condvar,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        locked(&self.board)
    }

    /// Calls `work` here and on up to `wanted` threads more that have nothing to do; returns when all are done.
    fn share(&self, work: &Loop<'_>, wanted: usize) {
        // SAFETY: only the lifetime changes, and no use of `work` outlives this call. Other threads find it on the
        // board alone, and one that calls it counts among its job's helpers from before the call until after it;
        // `retire` takes the job from the board when there are none, under the lock that both need. Nor does this
        // function unwind before: loops are called under `catch_unwind`, here and in `help`, and nothing else that
        // runs until then panics.
        let work = unsafe { transmute::<&Loop<'_>, &'static Loop<'static>>(work) };
        let ticket = self.publish(work, wanted);
        let panic = catch_unwind(AssertUnwindSafe(work)).err();
        let panics = self.retire(ticket);
        if let Some(panic) = panic.into_iter().chain(panics).next() {
            resume_unwind(panic);
        }
    }

    fn publish(&self, work: &'static Loop<'static>, wanted: usize) -> Ticket {
        let mut board = self.board();
        board.last_ticket += 1;
        let ticket = board.last_ticket;
        board.jobs.push(Job { ticket, work, wanted, helpers: 0, panics: Vec::new() });
        let calls = board.call();
        self.news.fetch_add(1, Ordering::Relaxed);
        drop(board);
        (0..calls).for_each(|_| self.called.notify_one());
        ticket
    }

    /// Waits for the helpers of a job and takes it from the board; gives their panics.
    fn retire(&self, ticket: Ticket) -> Vec<Box<dyn Any + Send>> {
        let mut board = self.board();
        board.job(ticket).wanted = 0;
        let mut board = self.help(board, Some(ticket));
        let index = board.index(ticket);
        board.jobs.remove(index).panics
    }

    /// Works on the jobs of others: an owner until its own has no helpers, a worker until the team ends.
    fn help<'a>(&'a self, mut board: MutexGuard<'a, Board>, own: Option<Ticket>) -> MutexGuard<'a, Board> {
        let mut idle_since = Instant::now();
        while !board.is_done(own) {
            if let Some((ticket, work)) = board.join(own) {
                drop(board);
                let panic = catch_unwind(AssertUnwindSafe(work)).err();
                board = self.leave(ticket, panic);
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                board = self.spin(board, idle_since);
            } else {
                board = self.sleep(board, own);
                idle_since = Instant::now();
            }
        }
        board
    }

    /// Leaves a job one joined: its items are all taken.
    fn leave(&self, ticket: Ticket, panic: Option<Box<dyn Any + Send>>) -> MutexGuard<'_, Board> {
        let mut board = self.board();
        let job = board.job(ticket);
        job.wanted = 0;
        job.helpers -= 1;
        job.panics.extend(panic);
        if job.helpers == 0 {
            self.news.fetch_add(1, Ordering::Relaxed);
            if board.waiting > 0 {
                self.finished.notify_all();
            }
        }
        board
    }

    /// Waits for news of the board, for a moment.
    fn spin<'a>(&'a self, mut board: MutexGuard<'a, Board>, since: Instant) -> MutexGuard<'a, Board> {
        board.spinning += 1;
        let old = self.news.load(Ordering::Relaxed);
        drop(board);
        while self.news.load(Ordering::Relaxed) == old && since.elapsed() < SPIN {
            spin_loop();
        }
        let mut board = self.board();
        board.spinning -= 1;
        board
    }

    /// Waits for as long as it takes: an owner for its last helper, a worker for a call.
    fn sleep<'a>(&'a self, mut board: MutexGuard<'a, Board>, own: Option<Ticket>) -> MutexGuard<'a, Board> {
        if own.is_some() {
            board.waiting += 1;
            let waits = |board: &mut Board| !board.is_done(own);
            let mut board = self.finished.wait_while(board, waits).unwrap_or_else(PoisonError::into_inner);
            board.waiting -= 1;
            board
        } else {
            board.asleep += 1;
            let waits = |board: &mut Board| board.calls == 0 && !board.closed;
            let mut board = self.called.wait_while(board, waits).unwrap_or_else(PoisonError::into_inner);
            board.calls = board.calls.saturating_sub(1);
            board
        }
    }

    /// Ends the workers.
    fn close(&self) {
        self.board().closed = true;
        self.news.fetch_add(1, Ordering::Relaxed);
        self.called.notify_all();
    }
}

/// Locks, whether or not a thread that held the lock panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread::scope;

    use super::*;

    fn team(threads: usize) -> Team {
        Team::new(threads).expect("threads")
    }

    /// How often a loop over `count` items takes each of them.
    fn taken(team: &Team, count: usize) -> Vec<usize> {
        let mut times = vec![0; count];
        team.for_each(times.iter_mut(), |times| *times += 1);
        times
    }

    #[test]
    fn every_item_is_taken_once() {
        for threads in 1..=8 {
            let team = team(threads);
            assert_eq!(team.threads(), threads);
            for count in [0, 1, 2, 7, 1000] {
                assert_eq!(taken(&team, count), vec![1; count], "{threads} threads");
            }
        }
    }

    #[test]
    fn many_short_loops_in_a_row_lose_nothing() {
        for threads in 1..=8 {
            let team = team(threads);
            let mut sums = [0usize; 3];
            for round in 0..3000 {
                team.for_each(sums.iter_mut(), |sum| *sum += round);
            }
            assert_eq!(sums, [3000 * 2999 / 2; 3], "{threads} threads");
        }
    }

    #[test]
    fn loops_run_in_loops() {
        for threads in 1..=8 {
            let team = team(threads);
            let mut cube = vec![vec![vec![0; 5]; 4]; 9];
            for _ in 0..50 {
                team.for_each(cube.iter_mut(), |square| {
                    team.for_each(square.iter_mut(), |line| team.for_each(line.iter_mut(), |value| *value += 1));
                });
            }
            assert_eq!(cube, vec![vec![vec![50; 5]; 4]; 9], "{threads} threads");
        }
    }

    #[test]
    fn threads_without_an_item_of_the_outer_loop_join_the_inner_ones() {
        let team = team(4);
        for _ in 0..100 {
            // Returns only when four threads are inside at the same time.
            let all = Barrier::new(4);
            team.for_each(0..2, |_| team.for_each(0..2, |_| _ = all.wait()));
        }
    }

    #[test]
    fn several_threads_may_share_a_team() {
        let team = team(3);
        scope(|scope| {
            for count in 1..=5 {
                let team = &team;
                scope.spawn(move || (0..200).for_each(|_| assert_eq!(taken(team, count), vec![1; count])));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_works_on() {
        for threads in 1..=8 {
            let team = team(threads);
            for bad in 0..20 {
                let work = |item| {
                    if item == bad {
                        panic!("item {item}")
                    }
                };
                let nested = |outer| team.for_each(5 * outer..5 * outer + 5, work);
                for caught in [
                    catch_unwind(AssertUnwindSafe(|| team.for_each(0..20, work))),
                    catch_unwind(AssertUnwindSafe(|| team.for_each(0..4, nested))),
                ] {
                    let panic = caught.expect_err("a panic");
                    assert_eq!(panic.downcast_ref(), Some(&format!("item {bad}")), "{threads} threads");
                }
                assert_eq!(taken(&team, 20), [1; 20], "{threads} threads");
            }
        }
    }

    #[test]
    fn its_threads_end_with_it() {
        let team = team(8);
        taken(&team, 8);
        let shared = Arc::downgrade(&team.shared);
        drop(team);
        assert!(shared.upgrade().is_none());
    }

    #[cfg(x86_code)]
    #[test]
    fn denormals_are_zero_in_a_loop_and_nowhere_else() {
        use std::hint::black_box;
        let half_the_smallest = || black_box(f32::MIN_POSITIVE) / black_box(2.0);
        for threads in [1, 4] {
            let mut found = [1.0; 16];
            team(threads).for_each(found.iter_mut(), |found| *found = half_the_smallest());
            assert_eq!(found, [0.0; 16], "{threads} threads");
            assert!(half_the_smallest() > 0.0, "{threads} threads");
        }
    }
}
