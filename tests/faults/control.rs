//! What is to fail, and what SQLite has called so far: one of each per thread.

use std::cell::RefCell;

/// The calls that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Open,
    Delete,
    Access,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReserved,
    SizeHint,
    ChunkSize,
    AllWritten,
    Committed,
    CheckpointStart,
    ShmMap,
    ShmLock,
    ShmUnlock,
    ShmUnmap,
    Close,
}

/// One call of SQLite's: the file by its role, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub method: Method,
    pub file: &'static str,
    pub arguments: (i64, i64),
}

/// What happens instead of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does nothing, and says that the disk fails.
    Io,
    /// The disk is full.
    Full,
    /// A part of a write is written, then the disk is full.
    Short,
    /// Somebody else has the lock.
    Busy,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Io, Kind::Full, Kind::Short, Kind::Busy];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Io => "eio",
            Kind::Full => "full",
            Kind::Short => "short",
            Kind::Busy => "busy",
        }
    }

    /// Whether `method` can fail so.
    pub fn fits(self, method: Method) -> bool {
        match self {
            Kind::Io => true,
            Kind::Full => matches!(method, Method::Write | Method::SizeHint),
            Kind::Short => method == Method::Write,
            Kind::Busy => matches!(method, Method::Lock | Method::ShmLock),
        }
    }

    /// Whether a disk that fails so from now on fails `method` too. Locks are not on the disk.
    fn lasts_for(self, method: Method) -> bool {
        let is_lock = matches!(
            method,
            Method::Lock
                | Method::Unlock
                | Method::CheckReserved
                | Method::ShmLock
                | Method::ShmUnlock
        );
        self.fits(method) && (self == Kind::Busy || !is_lock)
    }
}

/// Which call fails, counted from 1, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub at: usize,
    pub kind: Kind,
    /// Also every later call that can.
    pub lasting: bool,
}

#[derive(Default)]
struct Control {
    armed: bool,
    /// SQLite's own calls are to fail so.
    plan: Option<Plan>,
    trace: Vec<Call>,
    /// SQLite's call that is under way and has not reached the disk.
    current: Option<(Method, &'static str)>,
    /// The extension's own reads are to fail so.
    own_plan: Option<Plan>,
    own_reads: usize,
}

thread_local! {
    static CONTROL: RefCell<Control> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut Control) -> T) -> T {
    CONTROL.with_borrow_mut(act)
}

/// What a run called.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    pub trace: Vec<Call>,
    pub own_reads: usize,
}

/// From now on calls are counted, and fail as planned.
pub fn arm(plan: Option<Plan>, own_plan: Option<Plan>) {
    with(|control| {
        *control = Control {
            armed: true,
            plan,
            own_plan,
            ..Control::default()
        };
    });
}

/// Nothing fails any more.
pub fn disarm() -> Seen {
    with(|control| {
        let control = std::mem::take(control);
        Seen {
            trace: control.trace,
            own_reads: control.own_reads,
        }
    })
}

/// SQLite makes a call.
pub fn begin(method: Method, file: &'static str, arguments: (i64, i64)) {
    with(|control| {
        if control.armed {
            control.trace.push(Call {
                method,
                file,
                arguments,
            });
            control.current = Some((method, file));
        }
    });
}

/// SQLite's call is over.
pub fn end() {
    with(|control| control.current = None);
}

/// A call has come down to the disk: how it is to fail.
pub fn verdict(method: Method, file: &'static str) -> Option<Kind> {
    with(|control| {
        if !control.armed {
            return None;
        }
        let (plan, at) = if control.current == Some((method, file)) {
            control.current = None;
            (control.plan, control.trace.len())
        } else if matches!(method, Method::Read | Method::FileSize) {
            control.own_reads += 1;
            (control.own_plan, control.own_reads)
        } else {
            return None;
        };
        let plan = plan?;
        let fails = at == plan.at && plan.kind.fits(method)
            || plan.lasting && at > plan.at && plan.kind.lasts_for(method);
        fails.then_some(plan.kind)
    })
}
