//! The page that a person sees: one table, no script.

use std::fmt::Write;

use crate::proto::DatabaseInfo;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color:#222;background:#fff}\
    table{border-collapse:collapse}th,td{padding:.3em .9em;border-bottom:1px solid #ddd;text-align:right}\
    th:first-child,td:first-child,td:last-child{text-align:left}.bad{color:#a00}code{font-size:13px}";

/// The status page.
pub(super) fn render(databases: &[DatabaseInfo]) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>mycelite</title><style>{STYLE}</style>\
         <h1>mycelite {}</h1>",
        env!("CARGO_PKG_VERSION")
    );
    if databases.is_empty() {
        out.push_str("<p>No database here yet. Set <code>replica=http://HOST:PORT/NAME</code> where one is written.</p>");
        return out;
    }
    out.push_str(
        "<table><tr><th>database<th>transaction<th>in the file<th>behind<th>pages<th>page size<th>log bytes<th>state",
    );
    for info in databases {
        let behind = info.pos.txid.saturating_sub(info.applied_txid);
        let (class, state) = if info.last_error.is_empty() {
            ("", escape(&info.state))
        } else {
            (
                " class=\"bad\"",
                format!("{}: {}", escape(&info.state), escape(&info.last_error)),
            )
        };
        let state = match &info.follow {
            Some(follow) => format!(
                "{state} (follows {}: {})",
                escape(&follow.url),
                escape(&follow.state)
            ),
            None => state,
        };
        let name = escape(&info.name);
        let _ = write!(
            out,
            "<tr><td><a href=\"/v1/databases/{name}\">{name}</a><td>{}<td>{}<td>{behind}<td>{}<td>{}<td>{}<td{class}>{state}",
            info.pos.txid, info.applied_txid, info.page_count, info.page_size, info.log_bytes
        );
    }
    out.push_str(
        "</table><p><a href=\"/metrics\">metrics</a> · <a href=\"/v1/databases\">as JSON</a></p>",
    );
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn foreign_text_stays_text() {
        let info = DatabaseInfo {
            name: "app".to_string(),
            last_error: "<script>alert('x')</script> & \"more\"".to_string(),
            ..DatabaseInfo::default()
        };
        let page = render(&[info]);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
        assert!(render(&[]).contains("No database here yet"));
    }
}
