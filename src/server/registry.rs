//! Which databases there are: one per log directory, `NAME.db-mycelite`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lock::RwLock;
use axum::http::StatusCode;
use tokio::sync::Notify;

use super::database::Database;
use super::reply::Refusal;
use crate::error::{Error, Result};
use crate::proto::DatabaseName;

/// What a log directory's name adds to the database's name.
const LOG_SUFFIX: &str = ".db-mycelite";

/// All databases of one data directory.
pub(super) struct Registry {
    data: PathBuf,
    databases_max: usize,
    databases: RwLock<BTreeMap<DatabaseName, Arc<Database>>>,
    growth: Arc<Notify>,
}

impl Registry {
    /// Finds the databases in `data`. What has no proper name is left alone.
    pub fn scan(data: &Path, databases_max: usize) -> Result<Registry> {
        let failed = |e: &std::io::Error| Error::io("cannot list the data directory", data, e);
        let mut databases = BTreeMap::new();
        let growth = Arc::new(Notify::new());
        for entry in std::fs::read_dir(data).map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            let file_name = entry.file_name();
            let Some(name) = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(LOG_SUFFIX))
            else {
                continue;
            };
            match name.parse::<DatabaseName>() {
                Ok(name) if entry.path().is_dir() => {
                    let database = Database::new(data, &name, Arc::clone(&growth));
                    databases.insert(name, Arc::new(database));
                }
                _ => tracing::warn!(
                    "{}: not a log directory of a served database, left alone",
                    entry.path().display()
                ),
            }
        }
        Ok(Registry {
            data: data.to_path_buf(),
            databases_max,
            databases: RwLock::new(databases),
            growth,
        })
    }

    /// Just this one, for ever.
    pub fn of_one(database: &Arc<Database>) -> Registry {
        Registry {
            data: PathBuf::new(),
            databases_max: 1,
            databases: RwLock::new(BTreeMap::from([(
                database.name.clone(),
                Arc::clone(database),
            )])),
            growth: Arc::clone(&database.growth),
        }
    }

    /// The database of that name.
    pub fn get(&self, name: &DatabaseName) -> Option<Arc<Database>> {
        self.databases.read().get(name).cloned()
    }

    /// The database of that name; a new, empty one if there is room.
    pub fn get_or_create(
        &self,
        name: &DatabaseName,
    ) -> std::result::Result<Arc<Database>, Refusal> {
        if let Some(database) = self.get(name) {
            return Ok(database);
        }
        let mut databases = self.databases.write();
        if let Some(database) = databases.get(name) {
            return Ok(Arc::clone(database));
        }
        if databases.len() >= self.databases_max {
            return Err(Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                &format!(
                    "this server keeps {} databases and may not keep more (databases_max)",
                    databases.len()
                ),
            ));
        }
        let database = Arc::new(Database::new(&self.data, name, Arc::clone(&self.growth)));
        databases.insert(name.clone(), Arc::clone(&database));
        Ok(database)
    }

    /// Forgets a database that turned out to be nothing.
    pub fn remove(&self, database: &Arc<Database>) {
        let mut databases = self.databases.write();
        if databases
            .get(&database.name)
            .is_some_and(|known| Arc::ptr_eq(known, database))
        {
            databases.remove(&database.name);
        }
    }

    /// Rung when a log has grown.
    pub fn growth(&self) -> &Notify {
        &self.growth
    }

    /// All databases, in order of their names.
    pub fn all(&self) -> Vec<Arc<Database>> {
        self.databases.read().values().cloned().collect()
    }
}
