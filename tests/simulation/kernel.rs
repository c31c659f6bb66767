//! The machine that all parties run on: threads of which one runs at a time, and a clock that stands still while any can.
//!
//! Each thread of a simulated process is a real one that waits for the baton. It gives the baton away where it would wait
//! for the system, and at calls of the system that the seed chooses. When nobody can run, the clock goes to the next moment
//! at which something happens. So a seed decides everything.

use std::cell::{Cell, UnsafeCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::disk::Disk;
use crate::net::Net;
use crate::real;

pub type TaskId = usize;
/// 0 is whoever looks on from outside.
pub type PartyId = usize;

pub const MICROSECOND: u64 = 1_000;
pub const MILLISECOND: u64 = 1_000 * MICROSECOND;
pub const SECOND: u64 = 1_000 * MILLISECOND;

/// Switches and simulated time after which a world is taken to go on for ever.
const SWITCHES_MAX: u64 = 3_000_000;
const TIME_MAX: u64 = 4 * 3600 * SECOND;
/// What is remembered of the last things that happened.
const TRACE_MAX: usize = 400;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Futex(usize),
    Mutex(usize),
    Join(TaskId),
    Epoll(usize),
    Sleep,
    /// The director waits for something to happen.
    News,
    /// It is dead.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    Blocked(Key),
    Done,
}

pub struct Task {
    state: State,
    pub party: PartyId,
    /// Which life of the party it belongs to.
    life: u32,
    deadline: Option<u64>,
    woken: bool,
    /// Mutexes of C code that it holds: those of SQLite are one for all parties, so nobody dies with one.
    pub mutexes: u32,
    baton: &'static AtomicU32,
}

/// How a party ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Kill,
    PowerCut,
}

#[derive(Default)]
pub struct Party {
    pub alive: bool,
    pub life: u32,
    /// How its last life ended, until somebody asks.
    pub died: Option<Death>,
    /// How often its machine lost its power.
    pub boots: u64,
    /// So many calls of the system later, it dies.
    pub fuse: Option<(u64, Death)>,
    /// Its disk takes nothing more.
    pub full: bool,
    /// So many calls on its files later, one fails.
    pub fault: Option<u64>,
    /// What its clock is ahead of the others', in seconds.
    pub clock_ahead: i64,
    /// Longest time that a sync takes.
    pub sync_max: u64,
}

/// What happened, for the trace.
#[derive(Clone, Debug)]
pub struct Trace(pub u64, pub String);

pub struct Kernel {
    pub now: u64,
    pub random: Random,
    pub tasks: Vec<Task>,
    pub parties: Vec<Party>,
    pub net: Net,
    pub disks: Vec<Disk>,
    pub fds: Vec<Option<crate::fds::Fd>>,
    ready: Vec<TaskId>,
    deadlines: BTreeSet<(u64, TaskId)>,
    current: TaskId,
    switches: u64,
    /// Of everything that happened.
    pub hash: u64,
    pub trace: VecDeque<Trace>,
    pub tells: bool,
    /// Positions that servers said to have.
    pub acks: u64,
    /// To whom the next thread belongs.
    pub spawns_as: Option<PartyId>,
}

/// SplitMix64: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Mostly small, at times up to `limit`.
    pub fn skewed(&mut self, limit: u64) -> u64 {
        let bits = 64 - limit.max(1).leading_zeros();
        let limit = (1_u64 << self.below(u64::from(bits) + 1)).min(limit);
        self.below(limit + 1)
    }
}

struct Global(UnsafeCell<Option<Kernel>>);

// SAFETY: only the thread that has the baton uses it.
unsafe impl Sync for Global {}

static KERNEL: Global = Global(UnsafeCell::new(None));
static ACTIVE: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: Cell<Option<TaskId>> = const { Cell::new(None) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread, if it belongs to the simulation and is not the simulation itself.
pub fn current() -> Option<TaskId> {
    if !ACTIVE.load(Ordering::Relaxed) {
        return None;
    }
    let inside = INSIDE.try_with(Cell::get).unwrap_or(true);
    if inside {
        return None;
    }
    CURRENT.try_with(Cell::get).ok().flatten()
}

/// Works on the machine. What the work calls of the system is real.
pub fn with<T>(work: impl FnOnce(&mut Kernel) -> T) -> T {
    let was = INSIDE.replace(true);
    assert!(!was, "the machine is in use");
    // SAFETY: this thread has the baton, and is not in here already.
    let kernel = unsafe { &mut *KERNEL.0.get() };
    let result = work(kernel.as_mut().unwrap());
    INSIDE.set(false);
    result
}

/// Begins: the calling thread is the director.
pub fn start(seed: u64, parties: usize, tells: bool) {
    let mut kernel = Kernel {
        now: 1000 * SECOND,
        random: Random(seed),
        tasks: Vec::new(),
        parties: (0..parties).map(|_| Party::default()).collect(),
        net: Net::default(),
        disks: (0..parties).map(|_| Disk::default()).collect(),
        fds: Vec::new(),
        ready: Vec::new(),
        deadlines: BTreeSet::new(),
        current: 0,
        switches: 0,
        hash: seed,
        trace: VecDeque::new(),
        tells,
        acks: 0,
        spawns_as: None,
    };
    kernel.parties[0].alive = true;
    let me = kernel.new_task(0);
    kernel.tasks[me].state = State::Running;
    kernel.ready.clear();
    // SAFETY: there are no other threads yet.
    unsafe { *KERNEL.0.get() = Some(kernel) };
    CURRENT.set(Some(me));
    ACTIVE.store(true, Ordering::SeqCst);
}

/// The calling thread, which the system has just begun, waits until it may run as `task`.
pub fn begin_thread(task: TaskId) {
    // SAFETY: the list of tasks is not touched: the baton is looked up where nobody moves it.
    let baton = BATONS.lock().unwrap()[task];
    wait_for(baton);
    CURRENT.set(Some(task));
}

static BATONS: std::sync::Mutex<Vec<&'static AtomicU32>> = std::sync::Mutex::new(Vec::new());

fn wait_for(baton: &AtomicU32) {
    while baton.swap(0, Ordering::SeqCst) == 0 {
        real::futex_wait(baton, 0);
    }
}

fn pass_to(baton: &AtomicU32) {
    baton.store(1, Ordering::SeqCst);
    real::futex_wake(baton);
}

/// The calling thread ends.
pub fn end_thread() {
    let Some(me) = CURRENT.take() else { return };
    let next = with(|kernel| {
        kernel.tasks[me].state = State::Done;
        kernel.wake(Key::Join(me), usize::MAX);
        kernel.pick()
    });
    let baton = with(|kernel| kernel.tasks[next].baton);
    pass_to(baton);
}

/// Waits until someone wakes `key`, or until `deadline`: whether it was woken.
pub fn block(key: Key, deadline: Option<u64>) -> bool {
    let switch = with(|kernel| {
        let me = kernel.current;
        let task = &mut kernel.tasks[me];
        task.state = State::Blocked(key);
        task.woken = false;
        task.deadline = deadline;
        if let Some(deadline) = deadline {
            kernel.deadlines.insert((deadline, me));
        }
        kernel.switch_from(me)
    });
    run(switch);
    with(|kernel| kernel.tasks[kernel.current].woken)
}

/// Somebody else may run.
pub fn give_way() {
    let switch = with(|kernel| {
        let me = kernel.current;
        kernel.tasks[me].state = State::Ready;
        kernel.ready.push(me);
        kernel.switch_from(me)
    });
    run(switch);
}

type Switch = Option<(&'static AtomicU32, &'static AtomicU32)>;

fn run(switch: Switch) {
    if let Some((mine, next)) = switch {
        pass_to(next);
        wait_for(mine);
    }
}

/// A call of the system begins: time passes, others may run, and a dead one stops.
pub fn step() {
    let (yields, dead) = with(|kernel| {
        kernel.now += MICROSECOND + kernel.random.below(2 * MICROSECOND);
        let me = kernel.current;
        let party = kernel.tasks[me].party;
        kernel.burn(party);
        (kernel.random.one_in(6), kernel.is_dead(me))
    });
    if dead {
        stop_if_dead();
    } else if yields {
        give_way();
        stop_if_dead();
    }
}

/// A thread of a dead process does nothing more, as soon as nobody else needs what it holds. True if it must go on for now:
/// then it must not change anything.
pub fn stop_if_dead() -> bool {
    let (dead, free) = with(|kernel| {
        let me = kernel.current;
        (kernel.is_dead(me), kernel.tasks[me].mutexes == 0)
    });
    if dead && free {
        loop {
            block(Key::Never, None);
        }
    }
    dead
}

impl Kernel {
    pub fn new_task(&mut self, party: PartyId) -> TaskId {
        let id = self.tasks.len();
        let baton: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        BATONS.lock().unwrap().push(baton);
        self.tasks.push(Task {
            state: State::Ready,
            party,
            life: self.parties[party].life,
            deadline: None,
            woken: false,
            mutexes: 0,
            baton,
        });
        self.ready.push(id);
        id
    }

    pub fn current(&self) -> TaskId {
        self.current
    }

    pub fn switches(&self) -> u64 {
        self.switches
    }

    /// What the running task takes for its process: beyond all numbers that a system gives.
    pub fn pid(&self) -> libc::pid_t {
        let task = &self.tasks[self.current];
        10_000_000 + task.party as libc::pid_t * 100_000 + task.life as libc::pid_t
    }

    pub fn party(&self) -> PartyId {
        self.tasks[self.current].party
    }

    pub fn is_dead(&self, task: TaskId) -> bool {
        let task = &self.tasks[task];
        let party = &self.parties[task.party];
        !party.alive || party.life != task.life
    }

    pub fn is_done(&self, task: TaskId) -> bool {
        self.tasks[task].state == State::Done
    }

    fn switch_from(&mut self, me: TaskId) -> Switch {
        let next = self.pick();
        (next != me).then(|| (self.tasks[me].baton, self.tasks[next].baton))
    }

    /// Who runs next; waits for it in simulated time.
    fn pick(&mut self) -> TaskId {
        self.switches += 1;
        if self.switches > SWITCHES_MAX || self.now > TIME_MAX {
            self.give_up("it goes on for ever");
        }
        loop {
            self.due();
            if !self.ready.is_empty() {
                let index = self.random.below(self.ready.len() as u64) as usize;
                let next = self.ready.swap_remove(index);
                self.tasks[next].state = State::Running;
                self.current = next;
                self.mix(next as u64);
                return next;
            }
            let first = self.deadlines.first().map(|(time, _)| *time);
            let moment = [first, self.net.next_event()].into_iter().flatten().min();
            match moment {
                Some(moment) => self.now = self.now.max(moment),
                None => self.give_up("everybody waits for ever"),
            }
        }
    }

    fn due(&mut self) {
        while let Some((time, task)) = self.deadlines.first().copied() {
            if time > self.now {
                break;
            }
            self.make_ready(task, false);
        }
        crate::net::deliver(self);
    }

    fn make_ready(&mut self, task: TaskId, woken: bool) {
        let it = &mut self.tasks[task];
        if let Some(deadline) = it.deadline.take() {
            self.deadlines.remove(&(deadline, task));
        }
        if matches!(it.state, State::Blocked(_)) {
            it.state = State::Ready;
            it.woken = woken;
            self.ready.push(task);
        }
    }

    /// Wakes at most `count` of those who wait for `key`; how many.
    pub fn wake(&mut self, key: Key, count: usize) -> usize {
        let mut waiting: Vec<TaskId> = (0..self.tasks.len())
            .filter(|task| self.tasks[*task].state == State::Blocked(key))
            .collect();
        let mut woken = 0;
        while woken < count && !waiting.is_empty() {
            let index = self.random.below(waiting.len() as u64) as usize;
            let task = waiting.swap_remove(index);
            self.make_ready(task, true);
            woken += 1;
        }
        woken
    }

    /// One more call of the system by a party, which may be its last.
    fn burn(&mut self, party: PartyId) {
        let Some((calls, death)) = &mut self.parties[party].fuse else {
            return;
        };
        if *calls > 0 {
            *calls -= 1;
        } else {
            let death = *death;
            self.kill(party, death);
        }
    }

    /// A party dies: its threads run no more, its files and connections are closed by the system, or are as the power left
    /// them.
    pub fn kill(&mut self, party: PartyId, death: Death) {
        if !self.parties[party].alive {
            return;
        }
        self.tell(|| format!("party {party}: {death:?}"));
        let it = &mut self.parties[party];
        it.alive = false;
        it.died = Some(death);
        it.fuse = None;
        it.fault = None;
        for id in 0..self.tasks.len() {
            let task = &mut self.tasks[id];
            if task.party != party || task.mutexes > 0 || task.state == State::Done {
                continue;
            }
            if task.state != State::Running {
                task.state = State::Blocked(Key::Never);
            }
            if let Some(deadline) = task.deadline.take() {
                self.deadlines.remove(&(deadline, id));
            }
            self.ready.retain(|ready| *ready != id);
        }
        crate::fds::close_all(self, party, death);
        if death == Death::PowerCut {
            self.parties[party].boots += 1;
            let seed = self.random.next();
            self.disks[party].cut(seed);
        }
        self.wake(Key::News, usize::MAX);
    }

    /// A party begins a new life.
    pub fn revive(&mut self, party: PartyId) {
        let it = &mut self.parties[party];
        it.alive = true;
        it.life += 1;
        it.fuse = None;
        it.fault = None;
    }

    pub fn mix(&mut self, what: u64) {
        self.hash = (self.hash ^ what ^ self.now.rotate_left(32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    /// Notes what happens.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        self.mix(1);
        if self.tells {
            let line = what();
            if self.trace.len() >= TRACE_MAX {
                self.trace.pop_front();
            }
            self.trace.push_back(Trace(self.now, line));
        }
    }

    fn give_up(&mut self, why: &str) -> ! {
        let waits: Vec<String> = self
            .tasks
            .iter()
            .enumerate()
            .filter(|(id, task)| task.state != State::Done && !self.is_dead(*id))
            .map(|(id, task)| format!("{id} of party {}: {:?}", task.party, task.state))
            .collect();
        let why = format!("{why}; threads: {}", waits.join(", "));
        crate::outcome::fail(self, &why)
    }
}
