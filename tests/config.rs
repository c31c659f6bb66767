//! Settings: five layers, one table, and errors that say what is allowed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use mycelite::config::{self, Config, Kind, Layer, LogSync, SETTINGS, Scope, stored};
use mycelite::error::{Error, ErrorKind};

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn resolve(uri: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Config, Error> {
    Config::resolve(&pairs(uri), &pairs(env), None, None, Path::new("app.db"))
}

/// The error's text; it is one line and of kind `Usage`.
fn refused(result: Result<Config, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("mycelite.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn resolve_file(&self, text: &str) -> Result<Config, Error> {
        Config::resolve(&[], &[], None, Some(&self.file(text)), &self.db())
    }
}

#[test]
fn defaults_are_what_the_table_says() {
    let config = resolve(&[], &[]).unwrap();
    for setting in &SETTINGS {
        assert_eq!(
            config.show(setting.name),
            setting.default,
            "{}",
            setting.name
        );
        assert_eq!(config.layer(setting.name), Layer::Default);
        if !setting.default.is_empty() && setting.scope == Scope::Anywhere {
            Config::check(setting.name, setting.default).unwrap();
        }
    }
    assert_eq!(config.token().unwrap(), None);
}

#[test]
fn each_layer_hides_the_weaker_ones() {
    let home = Home::new();
    let file =
        home.file("[default]\nclose_flush_ms = 1\n[database.\"app.db\"]\nclose_flush_ms = 2\n");
    let stored = stored::path(&home.db());
    let layers = |uri: &[(&str, &str)], env: &[(&str, &str)], stored: Option<&Path>| {
        let config =
            Config::resolve(&pairs(uri), &pairs(env), stored, Some(&file), &home.db()).unwrap();
        (
            config.close_flush.as_millis(),
            config.layer("close_flush_ms"),
        )
    };
    assert_eq!(layers(&[], &[], None), (2, Layer::File));
    assert_eq!(
        layers(&[], &[], Some(&stored)),
        (2, Layer::File),
        "no stored file yet"
    );
    stored::insert(&stored, "close_flush_ms", "3").unwrap();
    assert_eq!(layers(&[], &[], Some(&stored)), (3, Layer::Stored));
    let env = [("MYCELITE_CLOSE_FLUSH_MS", "4")];
    assert_eq!(layers(&[], &env, Some(&stored)), (4, Layer::Environment));
    assert_eq!(
        layers(&[("close_flush_ms", "5")], &env, Some(&stored)),
        (5, Layer::Uri)
    );
}

#[test]
fn every_setting_reaches_its_field() {
    let config = resolve(
        &[
            ("vfs", "mycelite_writer"),
            ("strict", "0"),
            ("replica", "http://a:1/x, http://[::1]:2/y/,http://a:1/x"),
        ],
        &[
            ("MYCELITE_TOKEN", "geheim"),
            ("MYCELITE_TOKEN_FILE", "/run/token"),
            ("MYCELITE_LOG_SYNC", "full"),
            ("MYCELITE_SEGMENT_BYTES_MAX", "1MiB"),
            ("MYCELITE_CLOSE_FLUSH_MS", "0"),
            ("MYCELITE_REQUEST_TIMEOUT_MS", "600000"),
            ("MYCELITE_BATCH_BYTES_MAX", "65536"),
            ("MYCELITE_CONFIG", "/etc/mycelite.toml"),
        ],
    )
    .unwrap();
    assert_eq!(config.replicas, ["http://a:1/x", "http://[::1]:2/y"]);
    assert_eq!(config.token().unwrap().unwrap().reveal(), "geheim");
    assert_eq!(config.token_file.as_deref(), Some(Path::new("/run/token")));
    assert_eq!(config.log_sync, LogSync::Full);
    assert_eq!(config.segment_bytes_max, 1 << 20);
    assert_eq!(config.close_flush, Duration::ZERO);
    assert_eq!(config.request_timeout, Duration::from_secs(600));
    assert_eq!(config.batch_bytes_max, 65536);
    assert!(!config.strict);
    assert_eq!(config.show("segment_bytes_max"), "1 MiB");
    assert_eq!(config.show("strict"), "0");
}

#[test]
fn an_empty_replica_switches_replication_off() {
    let home = Home::new();
    let file = home.file("[default]\nreplica = [\"http://a:1/x\", \"http://b:1/x\"]\n");
    let config = Config::resolve(&[], &[], None, Some(&file), &home.db()).unwrap();
    assert_eq!(config.replicas, ["http://a:1/x", "http://b:1/x"]);
    let config = Config::resolve(
        &[],
        &pairs(&[("MYCELITE_REPLICA", "")]),
        None,
        Some(&file),
        &home.db(),
    )
    .unwrap();
    assert_eq!(config.replicas, [""; 0]);
    assert_eq!(config.layer("replica"), Layer::Environment);
}

#[test]
fn a_misspelt_setting_is_refused_in_every_layer() {
    let text = refused(resolve(
        &[("vfs", "mycelite_writer"), ("replcia", "http://a:1/x")],
        &[],
    ));
    assert_eq!(
        text,
        "URI parameter replcia: unknown setting \"replcia\" (did you mean replica?)"
    );
    let text = refused(resolve(&[], &[("MYCELITE_REPLICAS", "http://a:1/x")]));
    assert_eq!(
        text,
        "environment MYCELITE_REPLICAS: unknown setting \"MYCELITE_REPLICAS\" (did you mean MYCELITE_REPLICA?)"
    );
    let home = Home::new();
    let text = refused(home.resolve_file("[default]\nlogsync = \"full\"\n"));
    assert!(
        text.ends_with(
            "mycelite.toml [default] logsync: unknown setting \"logsync\" (did you mean log_sync?)"
        ),
        "{text}"
    );
    let text = refused(home.resolve_file("[database.\"other.db\"]\nlogsync = \"full\"\n"));
    assert!(text.contains("[database.\"other.db\"] logsync"), "{text}");
    let text = refused(home.resolve_file("replica = \"http://a:1/x\"\n"));
    assert!(
        text.ends_with("(put it below [default] or [database.\"PATH\"])"),
        "{text}"
    );
    let text = refused(home.resolve_file("[defaults]\n"));
    assert!(text.ends_with("(did you mean [default]?)"), "{text}");
    let path = stored::path(&home.db());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "replika = \"http://a:1/x\"\n").unwrap();
    let text = refused(Config::resolve(&[], &[], Some(&path), None, &home.db()));
    assert!(
        text.starts_with("stored setting replika in ") && text.ends_with("(did you mean replica?)"),
        "{text}"
    );
    assert!(
        stored::remove(&path, "replika").unwrap(),
        "what this version does not know can still be removed"
    );
    let text = refused(Config::check("zebra", "1").map(|()| Config::default()));
    assert!(text.contains("known are replica, token_file"), "{text}");
}

#[test]
fn foreign_uri_parameters_pass_unless_the_uri_names_our_vfs() {
    resolve(&[("hexkey", "00")], &[]).unwrap();
    resolve(&[("vfs", "unix"), ("whatever", "1")], &[]).unwrap();
    resolve(
        &[
            ("vfs", "mycelite_writer"),
            ("mode", "rwc"),
            ("cache", "private"),
            ("psow", "1"),
        ],
        &[],
    )
    .unwrap();
    resolve(
        &[
            ("vfs", "mycelite_writer"),
            ("whatever", "1"),
            ("strict", "0"),
        ],
        &[],
    )
    .unwrap();
    refused(resolve(
        &[("vfs", "mycelite_writer"), ("whatever", "1")],
        &[],
    ));
    refused(resolve(
        &[
            ("vfs", "mycelite_writer"),
            ("whatever", "1"),
            ("strict", "1"),
        ],
        &[],
    ));
    refused(resolve(
        &[("vfs", "mycelite_writer"), ("strict", "maybe")],
        &[],
    ));
    // A known setting is believed, and so checked, wherever it stands.
    refused(resolve(&[("log_sync", "sometimes")], &[]));
    let text = refused(resolve(
        &[("replica", "http://a:1/x"), ("replica", "http://b:1/x")],
        &[],
    ));
    assert!(text.contains("given twice"), "{text}");
}

#[test]
fn bad_values_name_key_value_place_and_what_is_allowed() {
    let table = [
        ("replica", "ftp://a/x", "only http://"),
        ("replica", "ftp://a/x", "http:// and https://"),
        ("replica", "a:1/x", "begins with http://"),
        ("replica", "http://:1/x", "host name"),
        ("replica", "http://a b/x", "host name"),
        ("replica", "http://[::z]:1/x", "IPv6"),
        ("replica", "http://a:0/x", "1 to 65535"),
        ("replica", "http://a:65536/x", "1 to 65535"),
        ("replica", "http://a:1", "name of the database"),
        ("replica", "http://a:1/", "name of the database"),
        ("replica", "http://a:1/../x", "nothing deeper"),
        ("replica", "http://a:1/.x", "a name is"),
        ("replica", "http://a:1/x%2f", "a name is"),
        ("replica", "http://a:1/x?y=1", "no '?'"),
        ("log_sync", "always", "off, normal, full"),
        ("log_sync", "", "off, normal, full"),
        ("close_flush_ms", "60001", "0 to 60000 milliseconds"),
        ("close_flush_ms", "-1", "0 to 60000 milliseconds"),
        ("close_flush_ms", "1.5", "0 to 60000 milliseconds"),
        ("request_timeout_ms", "99", "100 to 600000 milliseconds"),
        ("batch_bytes_max", "65535", "64 KiB to 1 GiB"),
        ("batch_bytes_max", "2 GiB", "64 KiB to 1 GiB"),
        ("batch_bytes_max", "99999999999 GiB", "64 KiB to 1 GiB"),
        ("segment_bytes_max", "4 TiB", "64 KiB to 4 GiB"),
        ("token_file", " ", "the path of a file"),
    ];
    for (key, value, expected) in table {
        let text = refused(Config::check(key, value).map(|()| Config::default()));
        assert!(
            text.starts_with(&format!("stored setting {key}: ")),
            "{text}"
        );
        assert!(text.contains(expected), "{key}={value}: {text}");
        let text = refused(resolve(&[(key, value)], &[]));
        assert!(
            text.starts_with(&format!("URI parameter {key}: ")),
            "{text}"
        );
        assert!(text.contains("allowed"), "{text}");
    }
    let many: Vec<String> = (0..33).map(|n| format!("http://a:1/x{n}")).collect();
    assert!(refused(resolve(&[("replica", &many.join(","))], &[])).contains("at most 32"));
}

#[test]
fn secrets_are_shown_nowhere() {
    let config = resolve(&[], &[("MYCELITE_TOKEN", "geheim")]).unwrap();
    let shown = format!(
        "{config:?} {:?} {}",
        config.token().unwrap(),
        config.show("token")
    );
    assert!(
        !shown.contains("geheim") && shown.contains("(set)"),
        "{shown}"
    );
    for (text, place) in [
        (
            refused(resolve(
                &[],
                &[("MYCELITE_TOKEN", "geheim mit Leerzeichen")],
            )),
            "environment MYCELITE_TOKEN",
        ),
        (
            refused(resolve(&[("token", "geheim")], &[])),
            "URI parameter token",
        ),
        (
            refused(Config::check("token", "geheim").map(|()| Config::default())),
            "stored setting token",
        ),
        (
            refused(resolve(&[("replica", "http://me:geheim@a:1/x")], &[])),
            "URI parameter replica",
        ),
        (
            refused(resolve(&[("replica", "me:geheim@a:1/x")], &[])),
            "URI parameter replica",
        ),
    ] {
        assert!(
            !text.contains("geheim") && text.starts_with(place),
            "{text}"
        );
    }
}

#[test]
fn a_token_file_is_read_when_the_token_is_needed() {
    let home = Home::new();
    let config = home
        .resolve_file("[default]\ntoken_file = \"secret\"\n")
        .unwrap();
    assert_eq!(
        config.token_file,
        Some(home.dir.path().join("secret")),
        "relative to the file that names it"
    );
    assert_eq!(config.token().unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(
        home.dir.path().join("secret"),
        "# mine\neins read,append\nzwei\n",
    )
    .unwrap();
    assert_eq!(config.token().unwrap().unwrap().reveal(), "eins");
    std::fs::write(home.dir.path().join("secret"), "\n").unwrap();
    let error = config.token().unwrap_err();
    assert!(error.to_string().contains("no token"), "{error}");
}

#[test]
fn stored_settings_survive_and_are_replaced_whole() {
    let home = Home::new();
    let path = stored::path(&home.db());
    assert_eq!(path, home.dir.path().join("app.db-mycelite/config.toml"));
    assert_eq!(stored::read(&path).unwrap(), []);
    assert!(!stored::remove(&path, "replica").unwrap());
    stored::insert(&path, "replica", "http://a:1/x,http://b:1/x").unwrap();
    stored::insert(&path, "log_sync", "off").unwrap();
    stored::insert(&path, "log_sync", "full").unwrap();
    let expected = pairs(&[
        ("log_sync", "full"),
        ("replica", "http://a:1/x,http://b:1/x"),
    ]);
    assert_eq!(stored::read(&path).unwrap(), expected);
    for (key, value) in [
        ("log_sync", "never"),
        ("replcia", "http://a:1/x"),
        ("token", "t"),
        ("strict", "0"),
    ] {
        assert_eq!(
            stored::insert(&path, key, value).unwrap_err().kind(),
            ErrorKind::Usage
        );
    }
    assert_eq!(
        stored::read(&path).unwrap(),
        expected,
        "a refused insert changes nothing"
    );
    assert!(stored::remove(&path, "log_sync").unwrap());
    assert_eq!(stored::read(&path).unwrap().len(), 1);
    let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}

#[test]
fn two_writers_of_stored_settings_lose_nothing() {
    let home = Home::new();
    let path = stored::path(&home.db());
    let keys = [
        "log_sync",
        "close_flush_ms",
        "request_timeout_ms",
        "replica",
    ];
    let values = ["full", "7", "777", "http://a:1/x"];
    std::thread::scope(|scope| {
        for (key, value) in keys.iter().zip(values) {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..20 {
                    stored::insert(path, key, value).unwrap();
                }
            });
        }
    });
    assert_eq!(stored::read(&path).unwrap().len(), keys.len());
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let home = Home::new();
    let text = refused(home.resolve_file("[default]\nreplica = http://a:1/x\n"));
    assert!(
        text.contains("mycelite.toml line 2: not valid TOML"),
        "{text}"
    );
    let text = refused(home.resolve_file("[default]\nclose_flush_ms = 1.5\n"));
    assert!(text.contains("a value of type float"), "{text}");
    let text = refused(home.resolve_file("default = 1\n"));
    assert!(text.contains("[default] is not a table"), "{text}");
    let text = refused(home.resolve_file(&format!("# {}\n", "x".repeat(1 << 20))));
    assert!(text.contains("longer than"), "{text}");
    let error = Config::resolve(&[], &[], None, Some(home.dir.path()), &home.db()).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Io,
        "a directory is not a file: {error}"
    );
}

#[test]
fn a_database_is_found_by_any_of_its_spellings() {
    let home = Home::new();
    std::fs::create_dir(home.dir.path().join("data")).unwrap();
    let db = home.dir.path().join("data/app.db");
    let text = "[database.\"data/../data/app.db\"]\nlog_sync = \"off\"\n";
    let file = home.file(text);
    let config = Config::resolve(&[], &[], None, Some(&file), &db).unwrap();
    assert_eq!(config.log_sync, LogSync::Off, "before the file exists");
    std::fs::write(&db, "").unwrap();
    let config = Config::resolve(&[], &[], None, Some(&file), &db).unwrap();
    assert_eq!(config.log_sync, LogSync::Off);
    #[cfg(unix)]
    {
        let link = home.dir.path().join("link.db");
        std::os::unix::fs::symlink(&db, &link).unwrap();
        let config = Config::resolve(&[], &[], None, Some(&file), &link).unwrap();
        assert_eq!(config.log_sync, LogSync::Off, "through a symbolic link");
    }
}

#[test]
fn help_and_readme_text_name_every_setting() {
    let (help, markdown) = (config::help_text(), config::markdown());
    for setting in &SETTINGS {
        assert!(help.contains(setting.name) && help.contains(setting.help));
        assert!(markdown.contains(setting.help) && markdown.contains(setting.default_shown()));
        assert!(!setting.help.contains('\n') && !setting.allowed().is_empty());
        if let Kind::Integer { min, max, .. } | Kind::Bytes { min, max } = setting.kind {
            assert!(min < max);
        }
    }
}

#[test]
fn the_settings_page_is_the_table() {
    let page = include_str!("../src/config/README.md");
    let table = config::markdown();
    assert!(
        page.contains(&table),
        "src/config/README.md must hold this table:\n{table}"
    );
}
