//! Mycelite with Rust and rusqlite: write a database, watch its replica, compare the two.
//!
//! ```text
//! cargo build --release
//! cargo run --release --example rust [DIRECTORY]      where cargo put libmycelite.so and mycelite [target/release]
//! cargo run --release --example rust PROGRAM LIBRARY  or each by its path
//! ```

// Loading a library is unsafe: nobody can prove what it does.
#![allow(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let (program, library) = locate()?;
    let home = tempfile::tempdir()?;
    let db = home.path().join("orders.db");
    let replica = home.path().join("replicas/orders.db");
    let server = Server::start(&program, &home.path().join("replicas"))?;
    let url = format!("{}/orders", server.address);

    load_extension(&library)?;
    let connection = write(&db, &url)?;
    let status: String = connection.query_row("SELECT mycelite_status()", [], |row| row.get(0))?;
    println!("status: {status}");
    connection.close().map_err(|(_, error)| error)?;

    // A process that ends right after COMMIT has perhaps not sent everything: push does.
    run(&program, &["push", path(&db)?, "--to", &url])?;
    run(&program, &["log", path(&db)?])?;
    run(&program, &["verify", path(&db)?, "--deep"])?;

    // The server brings the file up to date right after it has acknowledged the records.
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read(&replica).ok() != Some(std::fs::read(&db)?) {
        if Instant::now() > deadline {
            return Err("the replica differs".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let sum: i64 =
        Connection::open_with_flags_and_vfs(&replica, OpenFlags::SQLITE_OPEN_READ_WRITE, "unix")?
            .query_row("SELECT sum(cents) FROM orders", [], |row| row.get(0))?;
    println!("identical: orders.db and replicas/orders.db; all orders together: {sum} cents");
    Ok(())
}

/// The application: nothing is special but the URI.
fn write(db: &Path, url: &str) -> Result<Connection> {
    let uri = format!("file:{}?vfs=mycelite_writer&replica={url}", path(db)?);
    let mut connection = Connection::open_with_flags(uri, OpenFlags::default())?;
    connection.execute(
        "CREATE TABLE orders(id INTEGER PRIMARY KEY, item TEXT, cents INTEGER)",
        [],
    )?;
    for (item, cents) in [("tea", 350), ("coffee", 420), ("cake", 510)] {
        let transaction = connection.transaction()?;
        transaction.execute(
            "INSERT INTO orders(item, cents) VALUES (?, ?)",
            (item, cents),
        )?;
        transaction.commit()?;
    }
    Ok(connection)
}

/// Once per process: afterwards every connection can use the writer VFS.
fn load_extension(library: &Path) -> Result<()> {
    let door = Connection::open_in_memory()?;
    // SAFETY: it is the library that this example is about.
    unsafe {
        door.load_extension_enable()?;
        door.load_extension(library, None::<&str>)?;
    }
    Ok(())
}

/// A replica server that ends with this program.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(program: &Path, data: &Path) -> Result<Server> {
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data", path(data)?])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.trim().trim_start_matches("listening on ").to_string();
        Ok(Server { child, address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn locate() -> Result<(PathBuf, PathBuf)> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut program = arguments.next().unwrap_or_else(|| "target/release".into());
    let library = arguments
        .next()
        .unwrap_or_else(|| program.join("libmycelite.so"));
    if program.is_dir() {
        program.push("mycelite");
    }
    for file in [&program, &library] {
        if !file.is_file() {
            return Err(format!("no {}: run cargo build --release first", file.display()).into());
        }
    }
    Ok((program.canonicalize()?, library.canonicalize()?))
}

fn run(program: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("mycelite {}: {status}", arguments.join(" ")).into())
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "the path is not UTF-8".into())
}
