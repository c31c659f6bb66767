//! Reading the source tree: files, and Rust text without comments and literals.

use std::path::{Path, PathBuf};

/// Directories that hold no text of ours, beside hidden ones.
const SKIPPED: [&str; 3] = ["target", "node_modules", "__pycache__"];
/// Hidden directories that do.
const HIDDEN: [&str; 3] = [".ci", ".cargo", ".github"];

/// The top of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A text file of the repository.
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl File {
    /// Whether it is, or lies in, one of `places`: `src/proto.rs`, or a directory such as `src/ffi/`.
    pub fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path == *place || (place.ends_with('/') && self.path.starts_with(place))
        })
    }

    /// Whether it holds Rust code that only tests run.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.starts_with("benches/")
            || self.path.contains("/benches/")
            || self.path.contains("/fuzz/")
    }
}

/// All text files of the repository, sorted by path.
pub fn files() -> Vec<File> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .filter_map(|path| {
            let text = String::from_utf8(std::fs::read(&path).ok()?).ok()?;
            let path = path.strip_prefix(root()).ok()?.to_str()?.replace('\\', "/");
            (!text.contains('\0')).then_some(File { path, text })
        })
        .collect()
}

/// All Rust files.
pub fn rust_files() -> Vec<File> {
    files()
        .into_iter()
        .filter(|file| file.path.ends_with(".rs"))
        .collect()
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let hidden = name.starts_with('.') && !HIDDEN.contains(&&*name);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !hidden && !SKIPPED.contains(&&*name) => {
                walk(&entry.path(), paths)
            }
            Ok(kind) if kind.is_file() && !hidden => paths.push(entry.path()),
            _ => {}
        }
    }
}

/// The code of a Rust file: comments and the insides of literals become blanks, lines stay where they are.
pub fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        let keep = end == at + 1;
        for &one in &chars[at..end] {
            out.push(if keep || one == '\n' { one } else { ' ' });
        }
        at = end;
    }
    out
}

/// Where the comment or literal at `at` ends; `at + 1` if there is none.
fn token_end(chars: &[char], at: usize) -> usize {
    let peek = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let before = at.checked_sub(1).map_or(' ', |i| chars[i]);
    let starts_word = !(before.is_alphanumeric() || before == '_');
    match chars[at] {
        '/' if peek(1) == '/' => (at..chars.len())
            .find(|i| chars[*i] == '\n')
            .unwrap_or(chars.len()),
        '/' if peek(1) == '*' => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'b' | 'c' if starts_word && peek(1) == '"' => string_end(chars, at + 2),
        'b' | 'c' if starts_word && peek(1) == 'r' => {
            raw_string_end(chars, at + 2).unwrap_or(at + 1)
        }
        'r' if starts_word => raw_string_end(chars, at + 1).unwrap_or(at + 1),
        '\'' if peek(1) == '\\' => {
            // The character after the backslash may itself be a quote.
            let quote = (at + 3..chars.len()).find(|i| chars[*i] == '\'');
            quote.map_or(chars.len(), |i| i + 1)
        }
        '\'' if peek(2) == '\'' => at + 3,
        _ => at + 1,
    }
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut i = from;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `from` is just after the `r`. `None` if no raw string begins there.
fn raw_string_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from..].iter().take_while(|c| **c == '#').count();
    if chars.get(from + hashes) != Some(&'"') {
        return None;
    }
    let body = from + hashes + 1;
    let closes = |i: &usize| {
        chars[*i] == '"'
            && chars[*i + 1..]
                .iter()
                .take(hashes)
                .filter(|c| **c == '#')
                .count()
                == hashes
    };
    Some(
        (body..chars.len())
            .find(closes)
            .map_or(chars.len(), |i| i + 1 + hashes),
    )
}

/// The part of the code that is no inline test module: by our habit that module is the last in its file.
pub fn without_tests(code: &str) -> &str {
    let module = code
        .match_indices("#[cfg(test)]")
        .map(|(at, _)| at)
        .find(|at| {
            code[*at..].lines().nth(1).is_some_and(|line| {
                let line = line.trim_start().trim_start_matches("pub(super) ");
                line.starts_with("mod ") && line.ends_with('{')
            })
        });
    &code[..module.unwrap_or(code.len())]
}

/// Whether `word` occurs in the code as a whole word.
pub fn has_word(code: &str, word: &str) -> bool {
    let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        boundary(code[..at].chars().next_back()) && boundary(code[at + word.len()..].chars().next())
    })
}

/// The line, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// Functions with their first line and their length in lines, from `fn` to the closing brace.
pub fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_')
        {
            continue;
        }
        let name: String = code[at + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let Some(open) = body_start(code, at).filter(|_| !name.is_empty()) else {
            continue;
        };
        let mut depth = 0;
        let close = code[open..].char_indices().find(|(_, c)| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            depth == 0
        });
        let close = close.map_or(code.len(), |(offset, _)| open + offset);
        let first = line_of(code, at);
        found.push((name, first, line_of(code, close) + 1 - first));
    }
    found
}

/// The opening brace of the body of the function at `at`; `None` for a declaration.
fn body_start(code: &str, at: usize) -> Option<usize> {
    let mut nesting = 0;
    for (offset, c) in code[at..].char_indices() {
        match c {
            '(' | '[' => nesting += 1,
            ')' | ']' => nesting -= 1,
            '{' if nesting == 0 => return Some(at + offset),
            ';' if nesting == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The top-level modules of our own crate that the code of `path` names: by `crate::x`, `crate::{x, y}`, or enough
/// `super::`.
pub fn rooms_used(path: &str, code: &str) -> Vec<(String, usize)> {
    let mut starts: Vec<(usize, usize)> = code
        .match_indices("crate::")
        .filter(|(at, _)| {
            !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$')
        })
        .map(|(at, found)| (at, at + found.len()))
        .collect();
    let up = "super::".repeat(depth(path));
    if !up.is_empty() {
        starts.extend(
            code.match_indices(&up)
                .filter(|(at, _)| !code[..*at].ends_with("super::"))
                .map(|(at, found)| (at, at + found.len())),
        );
    }
    let mut used = Vec::new();
    for (at, after) in starts {
        let line = line_of(code, at);
        used.extend(
            names_after(&code[after..])
                .into_iter()
                .map(|name| (name, line)),
        );
    }
    used
}

/// How many modules deep the file is below the crate's root: 1 for `src/ship/mod.rs`, 2 for `src/ship/client.rs`.
fn depth(path: &str) -> usize {
    let inside = path
        .trim_start_matches("src/")
        .trim_end_matches(".rs")
        .trim_end_matches("/mod");
    if matches!(inside, "lib" | "main") {
        0
    } else {
        inside.split('/').count()
    }
}

/// The first names of a path or of a group of paths.
fn names_after(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = code.strip_prefix('{') else {
        return vec![name(code)];
    };
    let (mut depth, mut names, mut item) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' if depth == 0 => {
                names.push(name(&group[item..at]));
                item = at + 1;
            }
            '}' if depth == 0 => {
                names.push(name(&group[item..at]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}
