//! What the server says when it does not do what was asked: a status code and one line of JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use mycelite_journal::Pos;

use crate::error::{Error, ErrorKind};
use crate::proto::{ErrorReply, pos_status};

/// A refused request.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: String,
    pos: Option<Pos>,
}

impl Refusal {
    /// A refusal with its reason, one line.
    pub fn new(status: StatusCode, error: &str) -> Refusal {
        Refusal {
            status,
            error: error.to_string(),
            pos: None,
        }
    }

    /// Adds where the server stands, so that the other side can go on from there.
    pub fn with_pos(mut self, pos: Pos) -> Refusal {
        self.pos = Some(pos);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason.
    pub fn error(&self) -> &str {
        &self.error
    }

    /// The name is well-formed but unknown here.
    pub fn unknown(name: &str) -> Refusal {
        Refusal::new(
            StatusCode::NOT_FOUND,
            &format!("no database {name} here (GET /v1/databases lists them)"),
        )
    }

    /// Someone else is using what is needed, and waiting longer would have no bound.
    pub fn busy(what: &str) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, what)
    }

    /// A failed operation on a stored log.
    pub fn from_log(e: &mycelite_journal::Error) -> Refusal {
        let status = match e.io_error() {
            Some(io) if is_disk_full(io) => StatusCode::INSUFFICIENT_STORAGE,
            _ if e.is_not_found() => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, &e.to_string())
    }

    /// A failed operating-system call.
    pub fn from_io(what: &str, e: &std::io::Error) -> Refusal {
        let status = if is_disk_full(e) {
            StatusCode::INSUFFICIENT_STORAGE
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Refusal::new(status, &format!("{what}: {e}"))
    }
}

/// Whether a write failed for lack of space, in whatever form the system says that.
pub(super) fn is_disk_full(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge
    )
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Refusal {
        let status = match e.kind() {
            ErrorKind::Usage => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Diverged => StatusCode::CONFLICT,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, &e.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = ErrorReply {
            error: self.error,
            pos: self.pos.map(pos_status),
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    WWW_AUTHENTICATE,
                    axum::http::HeaderValue::from_static("Bearer"),
                );
            }
            _ => {}
        }
        response
    }
}
