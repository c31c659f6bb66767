#![doc = include_str!("README.md")]

mod file;
mod setting;
pub mod stored;
mod value;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use setting::{Age, Bytes, Kind, SETTINGS, Scope, Setting, help_text, markdown, nearest};
pub use value::{AckPolicy, LogSync, Secret, WalCapture, read_token};

use crate::access::{Access, TlsFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::maintain::Options;
use crate::proto::ReplicaUrl;
use value::Value;

/// URI parameters that SQLite or one of its own VFSs gives a meaning to.
const SQLITE_PARAMETERS: [&str; 8] = [
    "vfs",
    "mode",
    "cache",
    "psow",
    "nolock",
    "immutable",
    "modeof",
    "8_3_names",
];

/// `MYCELITE_` variables that are not settings of a database.
const OTHER_VARIABLES: [&str; 1] = ["MYCELITE_CONFIG"];

/// Bytes of a configuration or token file that are read at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value came from, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// A parameter of the URI the database was opened with.
    Uri,
    /// An environment variable.
    Environment,
    /// What `mycelite_config` stored beside the database.
    Stored,
    /// `mycelite.toml`, or the file that `MYCELITE_CONFIG` names.
    File,
    /// The built-in default.
    Default,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Uri => "URI",
            Layer::Environment => "environment",
            Layer::Stored => "stored",
            Layer::File => "file",
            Layer::Default => "default",
        })
    }
}

/// One value of one layer, before it is believed.
#[derive(Clone)]
struct Given {
    layer: Layer,
    /// What an error calls the place: `URI parameter replica`, `/etc/mycelite.toml [default] replica`.
    place: String,
    key: String,
    text: String,
    /// What a relative path in the value is relative to.
    base: PathBuf,
}

/// The settings of one database, resolved. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// Replica URLs, checked, in the order given, each once.
    pub replicas: Vec<String>,
    /// File that holds the bearer token, absolute.
    pub token_file: Option<PathBuf>,
    /// Token given directly; see [`Config::token`].
    pub token: Option<Secret>,
    /// Files for `https` URLs, absolute; see [`Config::access`].
    pub tls: TlsFiles,
    /// When the log is fsynced.
    pub log_sync: LogSync,
    /// Who records a commit in WAL mode.
    pub wal_capture: WalCapture,
    /// Length in bytes after which a segment is ended.
    pub segment_bytes_max: u64,
    /// Bytes of a database file from which on it is adopted in the background, in WAL mode.
    pub adopt_background_min: u64,
    /// How long the last close waits for the replicas.
    pub close_flush: Duration,
    /// How long one request to a replica may take.
    pub request_timeout: Duration,
    /// What is kept of the log: `keep_all`, `keep_minutes`, `keep_hours`, `keep_days`, `log_bytes_max`.
    pub keep: Options,
    /// Bytes of records in one request.
    pub batch_bytes_max: u64,
    /// Replicas that must hold a record durably before its COMMIT returns.
    pub ack: u32,
    /// How long a COMMIT waits for them.
    pub ack_timeout: Duration,
    /// What comes after that.
    pub ack_policy: AckPolicy,
    /// With the reader VFS: what this process follows into the file.
    pub source: Option<ReplicaUrl>,
    /// How long a read waits for that while there is nothing here yet.
    pub source_timeout: Duration,
    /// Whether unknown URI parameters are refused when the URI names one of our VFSs.
    pub strict: bool,
    layers: [Layer; SETTINGS.len()],
}

impl Default for Config {
    fn default() -> Config {
        Config {
            replicas: Vec::new(),
            token_file: None,
            token: None,
            tls: TlsFiles::default(),
            log_sync: LogSync::Normal,
            wal_capture: WalCapture::Commit,
            segment_bytes_max: 16 << 20,
            adopt_background_min: 8 << 20,
            close_flush: Duration::from_millis(500),
            request_timeout: Duration::from_secs(10),
            batch_bytes_max: 4 << 20,
            ack: 0,
            ack_timeout: Duration::from_secs(5),
            ack_policy: AckPolicy::Degrade,
            keep: Options::default(),
            source: None,
            source_timeout: Duration::from_secs(10),
            strict: true,
            layers: [Layer::Default; SETTINGS.len()],
        }
    }
}

impl Config {
    /// Settings of the database file `db`, opened with the URI parameters `uri`: reads the process's environment, what is
    /// stored beside the database, and `mycelite.toml` of the current directory or the file that `MYCELITE_CONFIG` names.
    pub fn for_database(db: &Path, uri: &[(String, String)]) -> Result<Config> {
        let env = process_environment();
        let named = env
            .iter()
            .find(|(key, _)| key == "MYCELITE_CONFIG")
            .map(|(_, value)| PathBuf::from(value));
        let usual = PathBuf::from("mycelite.toml");
        let file = match &named {
            Some(path) if !path.exists() => {
                return Err(Error::new(ErrorKind::Usage, "no such file")
                    .at(format_args!(
                        "environment MYCELITE_CONFIG={}",
                        path.display()
                    ))
                    .hint("name an existing mycelite.toml or unset the variable"));
            }
            Some(path) => Some(path.as_path()),
            None => Some(usual.as_path()).filter(|path| path.exists()),
        };
        Config::resolve(uri, &env, Some(&stored::path(db)), file, db)
    }

    /// Settings from the given layers. `env` holds the `MYCELITE_` variables; `stored` may not exist yet; `file` must exist.
    ///
    /// Fails with kind `Usage` on a key that is not known, a value that is not allowed, or a parameter given twice.
    pub fn resolve(
        uri: &[(String, String)],
        env: &[(String, String)],
        stored: Option<&Path>,
        file: Option<&Path>,
        db: &Path,
    ) -> Result<Config> {
        let mut given = from_uri(uri)?;
        given.extend(from_environment(env)?);
        if let Some(path) = stored {
            given.extend(stored::given(path, db)?);
        }
        if let Some(path) = file {
            given.extend(file::given(path, db)?);
        }
        let mut config = Config::default();
        // Every value is checked, also one that a stronger layer hides; the weakest is set first and overwritten.
        given.sort_by_key(|one| std::cmp::Reverse(one.layer));
        for one in &given {
            config.set(one)?;
        }
        Ok(config)
    }

    /// Whether `value` is allowed for `key`, as `mycelite_config` must know before it stores it.
    pub fn check(key: &str, value: &str) -> Result<()> {
        Config::default().set(&Given {
            layer: Layer::Stored,
            place: format!("stored setting {key}"),
            key: key.into(),
            text: value.into(),
            base: PathBuf::new(),
        })
    }

    /// Where the value of the setting `name` came from; `Default` for a name that is not a setting.
    pub fn layer(&self, name: &str) -> Layer {
        SETTINGS
            .iter()
            .zip(self.layers)
            .find(|(setting, _)| setting.name == name)
            .map_or(Layer::Default, |(_, layer)| layer)
    }

    /// The value of the setting `name` as text, for `mycelite_config` and status; a secret shows only that it is set.
    pub fn show(&self, name: &str) -> String {
        match name {
            "replica" => self.replicas.join(","),
            "token_file" => show_path(self.token_file.as_deref()),
            "token" => self
                .token
                .as_ref()
                .map(|_| "(set)".to_string())
                .unwrap_or_default(),
            "tls_ca" => show_path(self.tls.ca.as_deref()),
            "tls_cert" => show_path(self.tls.cert.as_deref()),
            "tls_key" => show_path(self.tls.key.as_deref()),
            "log_sync" => self.log_sync.to_string(),
            "wal_capture" => self.wal_capture.to_string(),
            "segment_bytes_max" => Bytes(self.segment_bytes_max).to_string(),
            "adopt_background_min" => Bytes(self.adopt_background_min).to_string(),
            "close_flush_ms" => self.close_flush.as_millis().to_string(),
            "request_timeout_ms" => self.request_timeout.as_millis().to_string(),
            "ack" => self.ack.to_string(),
            "ack_timeout_ms" => self.ack_timeout.as_millis().to_string(),
            "ack_policy" => self.ack_policy.to_string(),
            "batch_bytes_max" => Bytes(self.batch_bytes_max).to_string(),
            "keep_all" => Age(self.keep.keep_all).to_string(),
            "keep_minutes" => Age(self.keep.keep_minutes).to_string(),
            "keep_hours" => Age(self.keep.keep_hours).to_string(),
            "keep_days" => Age(self.keep.keep_days).to_string(),
            "log_bytes_max" => {
                let max = self.keep.log_bytes_max.map(|max| Bytes(max).to_string());
                max.unwrap_or_default()
            }
            "source" => self
                .source
                .as_ref()
                .map(ReplicaUrl::to_string)
                .unwrap_or_default(),
            "source_timeout_ms" => self.source_timeout.as_millis().to_string(),
            "strict" => u8::from(self.strict).to_string(),
            _ => String::new(),
        }
    }

    /// The bearer token for the replicas: `MYCELITE_TOKEN`, else the first line of `token_file`, read now so that a
    /// changed file is seen.
    pub fn token(&self) -> Result<Option<Secret>> {
        self.access().token()
    }

    /// What is shown to the replicas and by what they are known; no file is read.
    pub fn access(&self) -> Access {
        Access {
            token: self.token.clone(),
            token_file: self.token_file.clone(),
            tls: self.tls.clone(),
        }
    }

    fn set(&mut self, given: &Given) -> Result<()> {
        let Some(index) = SETTINGS
            .iter()
            .position(|setting| setting.name == given.key)
        else {
            return Err(unknown(
                &given.place,
                &given.key,
                SETTINGS.iter().map(|setting| setting.name),
            ));
        };
        let setting = &SETTINGS[index];
        check_scope(setting, given)?;
        match (setting.name, value::parse(setting, given)?) {
            ("replica", Value::Urls(urls)) => self.replicas = urls,
            ("token_file", Value::Path(path)) => self.token_file = Some(path),
            ("token", Value::Secret(secret)) => self.token = Some(secret),
            ("tls_ca", Value::Path(path)) => self.tls.ca = Some(path),
            ("tls_cert", Value::Path(path)) => self.tls.cert = Some(path),
            ("tls_key", Value::Path(path)) => self.tls.key = Some(path),
            ("log_sync", Value::Choice(word)) => self.log_sync = LogSync::from_word(word),
            ("wal_capture", Value::Choice(word)) => self.wal_capture = WalCapture::from_word(word),
            ("segment_bytes_max", Value::Number(bytes)) => self.segment_bytes_max = bytes,
            ("adopt_background_min", Value::Number(bytes)) => self.adopt_background_min = bytes,
            ("ack", Value::Number(replicas)) => self.ack = replicas as u32,
            ("ack_timeout_ms", Value::Number(ms)) => self.ack_timeout = Duration::from_millis(ms),
            ("ack_policy", Value::Choice(word)) => self.ack_policy = AckPolicy::from_word(word),
            ("close_flush_ms", Value::Number(ms)) => self.close_flush = Duration::from_millis(ms),
            ("request_timeout_ms", Value::Number(ms)) => {
                self.request_timeout = Duration::from_millis(ms)
            }
            ("batch_bytes_max", Value::Number(bytes)) => self.batch_bytes_max = bytes,
            ("keep_all", Value::Age(age)) => self.keep.keep_all = age,
            ("keep_minutes", Value::Age(age)) => self.keep.keep_minutes = age,
            ("keep_hours", Value::Age(age)) => self.keep.keep_hours = age,
            ("keep_days", Value::Age(age)) => self.keep.keep_days = age,
            ("log_bytes_max", Value::Number(max)) => self.keep.log_bytes_max = Some(max),
            ("source", Value::Url(url)) => self.source = Some(url),
            ("source_timeout_ms", Value::Number(ms)) => {
                self.source_timeout = Duration::from_millis(ms)
            }
            ("strict", Value::Number(flag)) => self.strict = flag != 0,
            (name, _) => {
                return Err(
                    Error::new(ErrorKind::Internal, "the setting has no place to go").at(name),
                );
            }
        }
        self.layers[index] = given.layer;
        Ok(())
    }
}

fn show_path(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

/// The `MYCELITE_` variables of this process.
pub fn process_environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| {
            Some((
                key.into_string().ok()?,
                value.to_string_lossy().into_owned(),
            ))
        })
        .filter(|(key, _)| key.starts_with("MYCELITE_"))
        .collect()
}

fn from_uri(uri: &[(String, String)]) -> Result<Vec<Given>> {
    let ours = uri
        .iter()
        .any(|(key, value)| key == "vfs" && value.starts_with("mycelite_"));
    let strict = ours
        && !uri
            .iter()
            .any(|(key, value)| key == "strict" && value == "0");
    let mut given: Vec<Given> = Vec::new();
    let reads = uri
        .iter()
        .any(|(key, value)| key == "vfs" && value == "mycelite_reader");
    for (key, text) in uri {
        let place = format!("URI parameter {key}");
        if key == "source" && !reads {
            return Err(Error::new(ErrorKind::Usage, "a database that is written follows nobody")
                .at(place)
                .hint("an embedded replica is read: add vfs=mycelite_reader; replica= sends a database to a server"));
        }
        if Setting::find(key).is_none() {
            if strict && !SQLITE_PARAMETERS.contains(&key.as_str()) {
                let known = SETTINGS
                    .iter()
                    .filter(|s| s.scope != Scope::EnvironmentOnly)
                    .map(|s| s.name);
                return Err(unknown(&place, key, known.chain(SQLITE_PARAMETERS)));
            }
            continue;
        }
        if given.iter().any(|one| one.key == *key) {
            return Err(Error::new(ErrorKind::Usage, "given twice")
                .at(place)
                .hint("give it once; several replicas are separated by commas"));
        }
        given.push(Given {
            layer: Layer::Uri,
            place,
            key: key.clone(),
            text: text.clone(),
            base: PathBuf::new(),
        });
    }
    Ok(given)
}

fn from_environment(env: &[(String, String)]) -> Result<Vec<Given>> {
    let mut given = Vec::new();
    for (variable, text) in env {
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let place = format!("environment {variable}");
        let Some(setting) = SETTINGS
            .iter()
            .find(|setting| setting.variable() == *variable)
        else {
            let known: Vec<String> = SETTINGS
                .iter()
                .filter(|setting| setting.scope != Scope::UriOnly)
                .map(Setting::variable)
                .collect();
            let known = known.iter().map(String::as_str).chain(OTHER_VARIABLES);
            return Err(unknown(&place, variable, known));
        };
        given.push(Given {
            layer: Layer::Environment,
            place,
            key: setting.name.into(),
            text: text.clone(),
            base: PathBuf::new(),
        });
    }
    Ok(given)
}

fn check_scope(setting: &Setting, given: &Given) -> Result<()> {
    let fits = match setting.scope {
        Scope::Anywhere => true,
        Scope::EnvironmentOnly => given.layer == Layer::Environment,
        Scope::UriOnly => given.layer == Layer::Uri,
    };
    if fits {
        return Ok(());
    }
    let (what, hint) = match setting.scope {
        Scope::EnvironmentOnly => (
            format!(
                "{} may not be given here, where others can read it",
                setting.name
            ),
            format!(
                "set {} in the environment, or use token_file",
                setting.variable()
            ),
        ),
        _ => (
            format!("{} may not be given here", setting.name),
            "give it as a URI parameter".into(),
        ),
    };
    Err(Error::new(ErrorKind::Usage, what)
        .at(&given.place)
        .hint(hint))
}

fn unknown<'a>(place: &str, key: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    // The nearest is compared in the key's own case: variables are in capitals.
    let lower: Vec<String> = known.iter().map(|name| name.to_lowercase()).collect();
    let hint = match nearest(key, lower.iter().map(String::as_str)) {
        Some(near) => {
            let shown = known
                .iter()
                .find(|name| name.to_lowercase() == near)
                .copied()
                .unwrap_or(near);
            format!("did you mean {shown}?")
        }
        None => format!("known are {}", known.join(", ")),
    };
    Error::new(ErrorKind::Usage, format_args!("unknown setting {key:?}"))
        .at(place)
        .hint(hint)
}
