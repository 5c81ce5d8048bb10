//! Threads that wait awake for the next piece of work.
//!
//! A step of generation is some hundred short products, one after the other. To wake a sleeping thread for each takes
//! longer than its share of the product (measured: 17 us a product with rayon on two cores, where the work is 16).
//! These threads look out for work for a while before they go to sleep, and whoever has work begins at once, alone if
//! need be: nobody waits for a thread that has not come.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// For how long a thread without work looks out for more: longer than between two products of a step, shorter than
/// what anyone would notice.
const AWAKE: Duration = Duration::from_micros(300);

/// How many looks it takes between two on the clock.
const LOOKS: usize = 256;

/// Calls `work` for every number below `tasks`, on as many threads as the current rayon pool has.
pub fn for_tasks(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads < 2 {
        return (0..tasks).for_each(work);
    }
    let turn = match team().turn.try_lock() {
        Ok(turn) => turn,
        // A task that panicked has left nothing behind.
        Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        // Others are at work, so that threads of our own would only be in their way.
        Err(TryLockError::WouldBlock) => return (0..tasks).for_each(work),
    };
    team().run(tasks, threads - 1, &work);
    drop(turn);
}

/// What there is to do. The reference lives as long as the job is open or a helper is inside.
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Helpers with a number below this take part.
    helpers: usize,
}

struct Team {
    /// Held by the thread whose job it is.
    turn: Mutex<()>,
    job: UnsafeCell<Option<Job>>,
    /// Whether helpers may begin.
    open: AtomicBool,
    /// Helpers that may be looking at the job.
    inside: AtomicUsize,
    /// The next task.
    next: AtomicUsize,
    panicked: AtomicBool,
    /// Counts jobs, so that helpers see a new one.
    jobs: AtomicUsize,
    helpers: OnceLock<Vec<Helper>>,
}

struct Helper {
    thread: Thread,
    asleep: &'static AtomicBool,
}

// SAFETY: `job` is written only by the holder of `turn` while the team is not open and nobody is inside who has seen
// it open; helpers read it only when they are counted as inside and have then seen it open.
unsafe impl Sync for Team {}
// SAFETY: as above; what the job points to is `Sync`.
unsafe impl Send for Team {}

fn team() -> &'static Team {
    static TEAM: Team = Team {
        turn: Mutex::new(()),
        job: UnsafeCell::new(None),
        open: AtomicBool::new(false),
        inside: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        panicked: AtomicBool::new(false),
        jobs: AtomicUsize::new(0),
        helpers: OnceLock::new(),
    };
    &TEAM
}

impl Team {
    /// Does all tasks together with some helpers. The caller holds `turn`.
    fn run(&'static self, tasks: usize, helpers: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes, and nobody looks at the job after the end of this call (see `Closing`).
        let work: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        // SAFETY: this thread holds `turn`, and the job before was closed when its owner let go of it.
        unsafe { *self.job.get() = Some(Job { work, tasks, helpers }) };
        self.next.store(0, SeqCst);
        self.panicked.store(false, SeqCst);
        let closing = Closing(self);
        self.open.store(true, SeqCst);
        self.jobs.fetch_add(1, SeqCst);
        for helper in self.helpers().iter().take(helpers) {
            if helper.asleep.load(SeqCst) {
                helper.thread.unpark();
            }
        }
        // SAFETY: it is this call's own argument.
        self.work(unsafe { &*work }, tasks);
        drop(closing);
        if self.panicked.load(SeqCst) {
            panic!("a helping thread panicked, see its message above");
        }
    }

    fn work(&self, work: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let task = self.next.fetch_add(1, SeqCst);
            if task >= tasks {
                return;
            }
            work(task);
        }
    }

    /// Takes part in the job if it is still open.
    fn help(&self, number: usize) {
        self.inside.fetch_add(1, SeqCst);
        if self.open.load(SeqCst) {
            // SAFETY: whoever closes the job waits until nobody is inside.
            if let Some(job) = unsafe { &*self.job.get() }
                && number < job.helpers
            {
                // SAFETY: as above, so that what it points to is still there.
                let work = unsafe { &*job.work };
                if catch_unwind(AssertUnwindSafe(|| self.work(work, job.tasks))).is_err() {
                    self.panicked.store(true, SeqCst);
                }
            }
        }
        self.inside.fetch_sub(1, SeqCst);
    }

    fn helpers(&'static self) -> &'static [Helper] {
        self.helpers.get_or_init(|| {
            let others = std::thread::available_parallelism().map_or(1, |n| n.get()) - 1;
            (0..others).filter_map(|number| self.helper(number)).collect()
        })
    }

    /// A thread that waits for jobs; None where the system gives no more threads.
    fn helper(&'static self, number: usize) -> Option<Helper> {
        let asleep: &AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let life = move || {
            let mut seen = 0;
            loop {
                let mut since = Instant::now();
                let mut looks = 0;
                while self.jobs.load(SeqCst) == seen {
                    std::hint::spin_loop();
                    looks += 1;
                    if looks % LOOKS == 0 && since.elapsed() > AWAKE {
                        // Said first and looked again after, so that a job in between is not missed.
                        asleep.store(true, SeqCst);
                        while self.jobs.load(SeqCst) == seen {
                            std::thread::park();
                        }
                        asleep.store(false, SeqCst);
                        since = Instant::now();
                    }
                }
                seen = self.jobs.load(SeqCst);
                self.help(number);
            }
        };
        let thread = std::thread::Builder::new().name(format!("sidenote-{number}")).spawn(life).ok()?;
        Some(Helper { thread: thread.thread().clone(), asleep })
    }
}

/// Closes the job at the end of the scope, also when a task panics: no helper begins any more, and those inside are
/// waited for.
struct Closing(&'static Team);

impl Drop for Closing {
    fn drop(&mut self) {
        let team = self.0;
        // Where a task of ours panicked, the helpers stop too.
        team.next.fetch_add(usize::MAX / 2, SeqCst);
        team.open.store(false, SeqCst);
        while team.inside.load(SeqCst) > 0 {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_task_is_done_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for round in 0..2000 {
            let tasks = round % 37;
            let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            let work = |task: usize| {
                done[task].fetch_add(1, SeqCst);
            };
            pool.install(|| for_tasks(tasks, work));
            assert!(done.iter().all(|done| done.load(SeqCst) == 1), "{tasks} tasks");
            if round % 500 == 0 {
                // Long enough for the helpers to fall asleep.
                std::thread::sleep(4 * AWAKE);
            }
        }
    }

    #[test]
    fn several_callers_and_tasks_within_tasks_get_on() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let inner = |_: usize| {
                            total.fetch_add(1, SeqCst);
                        };
                        for_tasks(8, |_| for_tasks(3, inner));
                    }
                });
            }
        });
        assert_eq!(total.load(SeqCst), 4 * 200 * 24);
    }

    #[test]
    fn a_panic_arrives_and_leaves_the_team_able_to_work() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for bad in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| for_tasks(20, |task| assert_ne!(task, bad, "on purpose")));
            }));
            assert!(outcome.is_err());
        }
        let done = Mutex::new(HashSet::new());
        let work = |task: usize| {
            done.lock().unwrap().insert(task);
        };
        pool.install(|| for_tasks(20, work));
        assert_eq!(done.into_inner().unwrap().len(), 20);
    }
}
