//! `mycelite token`: a new token, and the line that lets it in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use mycelite::config::Secret;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::server::{check_token_line, new_token, token_hash};

use super::Answer;
use super::args::TokenArgs;

/// Longest token that is read, with what may surround it, in bytes.
const INPUT_BYTES_MAX: u64 = 4096;

/// Runs the verb.
pub fn run(args: &TokenArgs) -> Result<Answer> {
    let token = match args.stdin {
        true => read_token()?,
        false => new_token()?,
    };
    let mut line = format!("{} {}", token_hash(&token), args.scope);
    if let Some(names) = &args.db {
        line.push_str(&format!(" db={names}"));
    }
    check_token_line(&line)?;
    match &args.add {
        Some(path) => add(path, &line)?,
        None => eprintln!("{line}"),
    }
    // After the line: a token that nobody has seen harms nobody, one that no server knows does.
    if !args.stdin {
        let mut out = io::stdout().lock();
        writeln!(out, "{token}")
            .and_then(|()| out.flush())
            .map_err(|source| {
                Error::new(ErrorKind::Io, format_args!("writing: {source}")).at("standard output")
            })?;
    }
    Ok(Answer::Yes)
}

fn read_token() -> Result<String> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| Error::new(ErrorKind::Io, source).at("standard input"))?;
    match Secret::new(text.trim()) {
        Some(token) => Ok(token.reveal().to_string()),
        None => Err(Error::new(ErrorKind::Usage, "this is not one token")
            .at("standard input")
            .hint("a token is printable ASCII characters without blanks")),
    }
}

/// Appends the line, durably; a new file can be read by its owner only.
fn add(path: &Path, line: &str) -> Result<()> {
    let failed = |e: io::Error| Error::io("cannot write to the token file", path, &e);
    let mut options = File::options();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    let mut last = Vec::new();
    file.read_to_end(&mut last).map_err(failed)?;
    let gap = match last.last() {
        None | Some(b'\n') => "",
        Some(_) => "\n",
    };
    file.write_all(format!("{gap}{line}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}
