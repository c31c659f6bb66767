//! What `mycelite_config` stores: `<db>-mycelite/config.toml`, one setting a line.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, Given, Layer, file, value};
use crate::error::{Error, ErrorKind, Result};

/// Where the settings of the database file `db` are stored.
pub fn path(db: &Path) -> PathBuf {
    let mut name = OsString::from(db.as_os_str());
    name.push("-mycelite");
    Path::new(&name).join("config.toml")
}

/// The stored settings in the file's order; none when there is no file. Values are not checked here.
pub fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for (key, value) in table(path)? {
        let text = file::text_of(&value, &format!("{} {key}", path.display()))?;
        settings.push((key, text));
    }
    Ok(settings)
}

/// Stores `key = value`, replacing an older value. Refuses what [`Config::check`] refuses.
pub fn insert(path: &Path, key: &str, value: &str) -> Result<()> {
    Config::check(key, value)?;
    change(path, |table| {
        table.insert(key.to_string(), Value::String(value.to_string()));
        true
    })
    .map(drop)
}

/// Removes `key`, also one that this version does not know; false when it was not stored.
pub fn remove(path: &Path, key: &str) -> Result<bool> {
    change(path, |table| table.remove(key).is_some())
}

pub(super) fn given(path: &Path, db: &Path) -> Result<Vec<Given>> {
    let base = std::path::absolute(db).unwrap_or_else(|_| db.to_path_buf());
    let base = base.parent().map(Path::to_path_buf).unwrap_or_default();
    let settings = read(path)?.into_iter().map(|(key, text)| Given {
        layer: Layer::Stored,
        place: format!("stored setting {key} in {}", path.display()),
        key,
        text,
        base: base.clone(),
    });
    Ok(settings.collect())
}

fn table(path: &Path) -> Result<Table> {
    if !path.exists() {
        return Ok(Table::new());
    }
    let text = value::read_bounded(path, "reading the stored settings")?;
    text.parse()
        .map_err(|error: toml::de::Error| file::syntax_error(path, &text, &error))
}

/// Reads, changes and replaces the file under a lock on its directory; a crash leaves the old file or the new one.
fn change(path: &Path, edit: impl FnOnce(&mut Table) -> bool) -> Result<bool> {
    let io = |source: std::io::Error| Error::io("storing the setting", path, &source);
    let directory = path
        .parent()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "no directory").at(path.display()))?;
    std::fs::create_dir_all(directory).map_err(io)?;
    let lock = std::fs::File::open(directory).map_err(io)?;
    lock.lock().map_err(io)?;
    let mut table = table(path)?;
    if !edit(&mut table) {
        return Ok(false);
    }
    let mut temporary = temporary_in(directory).map_err(io)?;
    temporary
        .write_all(table.to_string().as_bytes())
        .map_err(io)?;
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    lock.sync_all().map_err(io)?;
    Ok(true)
}

/// A temporary file with the permissions of an ordinary one: others who may read the database may read its settings.
fn temporary_in(directory: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("config.toml.");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}
