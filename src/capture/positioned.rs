//! Reading and writing a file at an offset, on every platform.

use std::fs::File;
use std::io::Result;
use std::path::Path;

#[cfg(unix)]
use std::os::unix::fs::FileExt;

/// Writes all of `bytes` at `offset`.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    FileExt::write_all_at(file, bytes, offset)
}

/// Reads at `offset`; fewer bytes, or none, at the end of the file.
#[cfg(unix)]
pub fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<usize> {
    FileExt::read_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`.
#[cfg(not(unix))]
pub fn write_all_at(mut file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// Reads at `offset`; fewer bytes, or none, at the end of the file.
#[cfg(not(unix))]
pub fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> Result<usize> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read(bytes)
}

/// Makes `bytes` the content of the file at `path`, which is made if need be. The file is not emptied first: giving its block
/// back can wait for the file system's journal, and whoever checkpoints would wait with it. A reader may find a mixture,
/// so a hash must tell.
pub fn overwrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    write_all_at(&file, bytes, 0)?;
    if file.metadata()?.len() > bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

/// Fills `bytes` from `offset` on.
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read_at(file, rest, offset + done as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            got => done += got,
        }
    }
    Ok(())
}
