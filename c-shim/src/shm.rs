//! The shared memory of a WAL database: the wal-index, its regions and its eight locks.

use core::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use libsqlite3_sys as sys;

use crate::{Code, File};

/// Number of lock slots.
const SLOTS: usize = sys::SQLITE_SHM_NLOCK as usize;

/// The slot of whoever checkpoints, as SQLite's `wal.c` numbers them.
const CHECKPOINT_SLOT: u32 = 1;

/// What a [`File`] holds of its shared memory's locks, kept with the file so that no lock outlives it.
#[derive(Clone, Copy, Default)]
pub(crate) struct HeldLocks([Held; SLOTS]);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Shared,
    Exclusive,
}

/// What to do with lock slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOp {
    /// Take one slot together with other sharers.
    LockShared,
    /// Take slots alone.
    LockExclusive,
    /// Give back a shared slot.
    UnlockShared,
    /// Give back exclusive slots.
    UnlockExclusive,
}

impl LockOp {
    fn flags(self) -> c_int {
        match self {
            LockOp::LockShared => sys::SQLITE_SHM_LOCK | sys::SQLITE_SHM_SHARED,
            LockOp::LockExclusive => sys::SQLITE_SHM_LOCK | sys::SQLITE_SHM_EXCLUSIVE,
            LockOp::UnlockShared => sys::SQLITE_SHM_UNLOCK | sys::SQLITE_SHM_SHARED,
            LockOp::UnlockExclusive => sys::SQLITE_SHM_UNLOCK | sys::SQLITE_SHM_EXCLUSIVE,
        }
    }

    /// What a slot must hold before, and holds after.
    fn change(self) -> (Held, Held) {
        match self {
            LockOp::LockShared => (Held::Nothing, Held::Shared),
            LockOp::LockExclusive => (Held::Nothing, Held::Exclusive),
            LockOp::UnlockShared => (Held::Shared, Held::Nothing),
            LockOp::UnlockExclusive => (Held::Exclusive, Held::Nothing),
        }
    }
}

impl File {
    /// Joins the database's shared memory; the first to come creates and clears it. Others notice in no way, until a
    /// lock is taken. One [`Shm`] per file at a time.
    ///
    /// # Errors
    /// `SQLITE_MISUSE` if this file has one already; `SQLITE_IOERR_SHMOPEN` and its like if the VFS has none or cannot
    /// make it; `SQLITE_BUSY` if another process is just clearing it.
    pub fn shm(&self) -> Result<Shm<'_>, Code> {
        if self.shm.get().is_some() {
            return Err(Code::MISUSE);
        }
        if !self.has_shm() {
            return Err(Code(sys::SQLITE_IOERR_SHMOPEN));
        }
        // From here on there is something to unmap, even if the first mapping fails half-way.
        self.shm.set(Some(HeldLocks::default()));
        let shm = Shm { file: self };
        // Asking for a region joins; without it a lock call would find nothing to lock.
        shm.map(0, false)?;
        Ok(shm)
    }

    /// Takes the lock without which no checkpoint begins, and keeps it until the file is closed.
    ///
    /// # Errors
    /// As [`File::shm`] and [`Shm::lock`]: `SQLITE_BUSY` while somebody else has it.
    pub fn hold_checkpoints(&self) -> Result<(), Code> {
        let shm = self.shm()?;
        shm.lock(CHECKPOINT_SLOT, 1, LockOp::LockExclusive)?;
        // What is held is noted with the file, whose close gives it back.
        std::mem::forget(shm);
        Ok(())
    }

    /// Gives back what is still held of the shared memory. Harmless if nothing is.
    pub(crate) fn close_shm(&self) {
        let Some(held) = self.shm.get() else { return };
        let methods = self.methods();
        if let Some(lock) = methods.xShmLock {
            for (slot, held) in (0..).zip(held.0) {
                let op = match held {
                    Held::Nothing => continue,
                    Held::Shared => LockOp::UnlockShared,
                    Held::Exclusive => LockOp::UnlockExclusive,
                };
                // SAFETY: the file is open, its shared memory joined, and the slot held in this way. A failure leaves
                // nothing to be done: closing the file drops the lock in any case.
                let _ = unsafe { lock(self.as_ptr(), slot, 1, op.flags()) };
            }
        }
        if let Some(unmap) = methods.xShmUnmap {
            // SAFETY: the file is open; no region outlives its Shm. The memory is left to others.
            let _ = unsafe { unmap(self.as_ptr(), 0) };
        }
        self.shm.set(None);
    }
}

/// The shared memory of an open database file; left on drop, its locks given back.
pub struct Shm<'a> {
    file: &'a File,
}

impl Shm<'_> {
    /// Bytes of one region.
    pub const REGION_BYTES: usize = 32 * 1024;
    /// Number of lock slots.
    pub const LOCK_COUNT: usize = SLOTS;

    /// Region `index`, from 0. `None` if it does not exist and `extend` is not set; with it, it is made, zeroed.
    ///
    /// # Errors
    /// What the VFS says; `SQLITE_MISUSE` for an index beyond 2^16.
    pub fn region(&self, index: u32, extend: bool) -> Result<Option<Region<'_>>, Code> {
        self.map(index, extend)
    }

    fn map(&self, index: u32, extend: bool) -> Result<Option<Region<'_>>, Code> {
        let index = c_int::from(u16::try_from(index).map_err(|_| Code::MISUSE)?);
        let method = self
            .file
            .methods()
            .xShmMap
            .ok_or(Code(sys::SQLITE_IOERR_SHMMAP))?;
        let mut memory: *mut c_void = null_mut();
        // SAFETY: the file is open and has shared memory; the size is the one that SQLite uses, so that all agree.
        let rc = unsafe {
            method(
                self.file.as_ptr(),
                index,
                Self::REGION_BYTES as c_int,
                c_int::from(extend),
                (&raw mut memory).cast(),
            )
        };
        // SQLITE_READONLY with memory is an answer, not a failure: mapped for reading only.
        let writable = match Code(rc) {
            Code::OK => true,
            Code::READONLY if !memory.is_null() => false,
            code => return Err(code),
        };
        Ok(NonNull::new(memory.cast()).map(|memory| Region {
            memory,
            writable,
            _shm: PhantomData,
        }))
    }

    /// Takes or gives back `count` slots from `first` on, one try without waiting. Shared locks go one by one.
    ///
    /// # Errors
    /// `SQLITE_BUSY` if someone else is in the way; `SQLITE_MISUSE` for slots that do not exist, that are held already,
    /// or that are given back without being held in that way.
    pub fn lock(&self, first: u32, count: u32, op: LockOp) -> Result<(), Code> {
        let from = usize::try_from(first).map_err(|_| Code::MISUSE)?;
        let length = usize::try_from(count).map_err(|_| Code::MISUSE)?;
        let shared = matches!(op, LockOp::LockShared | LockOp::UnlockShared);
        if length == 0 || length > SLOTS || from > SLOTS - length || (shared && length != 1) {
            return Err(Code::MISUSE);
        }
        let mut held = self.file.shm.get().unwrap_or_default();
        let (before, after) = op.change();
        let slots = &mut held.0[from..from + length];
        if slots.iter().any(|slot| *slot != before) {
            return Err(Code::MISUSE);
        }
        let method = self
            .file
            .methods()
            .xShmLock
            .ok_or(Code(sys::SQLITE_IOERR_SHMLOCK))?;
        // SAFETY: the file is open and its shared memory joined; the slots exist and are in the state that the
        // operation starts from.
        Code::check(unsafe {
            method(
                self.file.as_ptr(),
                from as c_int,
                length as c_int,
                op.flags(),
            )
        })?;
        slots.fill(after);
        self.file.shm.set(Some(held));
        Ok(())
    }

    /// Orders what was read and written before against what comes after, between processes.
    pub fn barrier(&self) {
        if let Some(method) = self.file.methods().xShmBarrier {
            // SAFETY: the file is open and its shared memory joined.
            unsafe { method(self.file.as_ptr()) }
        }
    }
}

impl Drop for Shm<'_> {
    fn drop(&mut self) {
        self.file.close_shm();
    }
}

/// 32 KiB of shared memory. Other processes change it at any time, so each access is one atomic load or store
/// (relaxed: use [`Shm::barrier`] for order). Numbers are in the machine's byte order, as in the wal-index.
pub struct Region<'a> {
    memory: NonNull<u8>,
    writable: bool,
    _shm: PhantomData<&'a ()>,
}

macro_rules! accessors {
    ($get:ident, $set:ident, $number:ty, $atomic:ty) => {
        #[doc = concat!("Reads a `", stringify!($number), "` at a byte offset, which must be a multiple of its size.")]
        ///
        /// # Errors
        /// `SQLITE_MISUSE` outside the region or between two numbers.
        pub fn $get(&self, offset: usize) -> Result<$number, Code> {
            let place = self.place(offset, size_of::<$number>())?;
            // SAFETY: place() checked bounds and alignment; the mapping lives as long as the Shm.
            Ok(unsafe { <$atomic>::from_ptr(place.cast()) }.load(Ordering::Relaxed))
        }

        #[doc = concat!("Writes a `", stringify!($number), "` at a byte offset, which must be a multiple of its size.")]
        ///
        /// # Errors
        /// `SQLITE_MISUSE` outside the region or between two numbers; `SQLITE_READONLY` if it is mapped so.
        pub fn $set(&self, offset: usize, value: $number) -> Result<(), Code> {
            let place = self.place(offset, size_of::<$number>())?;
            if !self.writable {
                return Err(Code::READONLY);
            }
            // SAFETY: place() checked bounds and alignment; the mapping is writable and lives as long as the Shm.
            unsafe { <$atomic>::from_ptr(place.cast()) }.store(value, Ordering::Relaxed);
            Ok(())
        }
    };
}

impl Region<'_> {
    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    accessors!(get_u8, set_u8, u8, AtomicU8);
    accessors!(get_u16, set_u16, u16, AtomicU16);
    accessors!(get_u32, set_u32, u32, AtomicU32);

    fn place(&self, offset: usize, size: usize) -> Result<*mut u8, Code> {
        if offset > Shm::REGION_BYTES - size || !offset.is_multiple_of(size) {
            return Err(Code::MISUSE);
        }
        // SAFETY: inside the region, which is a mapping of REGION_BYTES.
        let place = unsafe { self.memory.as_ptr().add(offset) };
        // Mappings start at page boundaries; a VFS that keeps regions on the heap might not.
        if place.addr().is_multiple_of(size) {
            Ok(place)
        } else {
            Err(Code::MISUSE)
        }
    }
}
