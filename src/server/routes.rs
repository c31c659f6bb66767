//! The routes: who may use them, what they take, what they answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{MatchedPath, Path, Query, Request, State as AppState};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use mycelite_journal::{Pos, Txid};

use super::auth::Scope;
use super::conn::Peer;
use super::database::{Database, Durable};
use super::reply::Refusal;
use super::{State, append, download, fork, live, page, snapshot};
use crate::moment::{Moment, Named};
use crate::proto::follow::FOLLOW_VERSION;
use crate::proto::{
    DatabaseInfo, DatabaseList, DatabaseName, HEADER_PROTOCOL, Handshake, PROTOCOL, TYPE_HANDSHAKE,
    excerpt, pos_status,
};

type App = AppState<Arc<State>>;
type Name = Result<Path<String>, PathRejection>;
type Params = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// All routes of a server.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/v1/databases", get(list))
        .route("/v1/databases/{name}", get(info))
        .route("/v1/databases/{name}/pos", get(pos))
        .route(
            "/v1/databases/{name}/log",
            get(records).post(append_records),
        )
        .route("/v1/databases/{name}/file", get(file))
        .route(
            "/v1/databases/{name}/snapshot",
            get(send_snapshot).put(take_snapshot),
        )
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_route)
        .layer(from_fn_with_state(Arc::clone(&state), around))
        .with_state(state)
}

/// Marks every answer as ours and counts it.
async fn around(AppState(state): App, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_string(), |p| p.as_str().to_string());
    let method = request.method().clone();
    // The sign of life is for those who watch, however busy the server is.
    let free = route == "/healthz";
    let mut response = match peer {
        Some(Peer(address)) if !free && !state.rates.admit(address, Instant::now()) => {
            refuse_rate(request).await.into_response()
        }
        _ => next.run(request).await,
    };
    if let (Some(Peer(address)), StatusCode::UNAUTHORIZED) = (peer, response.status()) {
        state.rates.punish(address, Instant::now());
    }
    response
        .headers_mut()
        .insert(HEADER_PROTOCOL, HeaderValue::from(PROTOCOL));
    state.metrics.request(&route, response.status().as_u16());
    tracing::debug!("{method} {route} {}", response.status().as_u16());
    response
}

/// What was sent is read, so that the answer is, too.
async fn refuse_rate(request: Request) -> Refusal {
    super::stream::drain(&mut request.into_body()).await;
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests from this address (requests_per_second_max; each bad token counts as 200)",
    )
}

async fn wrong_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this route does not know that method",
    )
}

async fn no_route() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no such route (the databases are under /v1/databases)",
    )
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn index(AppState(state): App, headers: HeaderMap) -> Result<Html<String>, Refusal> {
    state.gate.check(&headers, &[Scope::Read], None)?;
    Ok(Html(page::render(&all_infos(&state).await?)))
}

async fn metrics(AppState(state): App, headers: HeaderMap) -> Result<Response, Refusal> {
    state.gate.check(&headers, &[Scope::Read], None)?;
    learn_all(&state).await;
    let text = {
        let state = Arc::clone(&state);
        let followers = state
            .limits
            .followers_max
            .saturating_sub(state.followers.available_permits());
        blocking(move || state.metrics.render(&state.registry.all(), followers)).await?
    };
    Ok((
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response())
}

async fn list(AppState(state): App, headers: HeaderMap) -> Result<Json<DatabaseList>, Refusal> {
    state.gate.check(&headers, &[Scope::Read], None)?;
    Ok(Json(DatabaseList {
        databases: all_infos(&state).await?,
    }))
}

async fn info(
    AppState(state): App,
    name: Name,
    headers: HeaderMap,
) -> Result<Json<DatabaseInfo>, Refusal> {
    permit(&state, &headers, &[Scope::Read], &name)?;
    let (database, _) = known(&state, name).await?;
    Ok(Json(blocking(move || database.info()).await?))
}

async fn pos(
    AppState(state): App,
    name: Name,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    permit(&state, &headers, &[Scope::Read, Scope::Append], &name)?;
    let wants_handshake = headers
        .get(ACCEPT)
        .is_some_and(|value| value == TYPE_HANDSHAKE);
    let found = known(&state, name).await;
    let params = parse_params(params, &["txid"])?;
    if let Some(txid) = parse_txid(&params, "txid")? {
        let (database, durable) = found?;
        return Ok(Json(pos_status(pos_at(database, durable.pos, txid).await?)).into_response());
    }
    if !wants_handshake {
        let (_, durable) = found?;
        return Ok(Json(pos_status(durable.pos)).into_response());
    }
    let handshake = match found {
        Ok((database, durable)) => {
            let applied = database.apply.lock().applied;
            Handshake::new(Some(durable.id), durable.pos, durable.page_size, applied)
        }
        // To a shipper, a database that is not there yet is one to be created.
        Err(refusal) if refusal.status() == StatusCode::NOT_FOUND => {
            Handshake::new(None, Pos::ZERO, 0, Txid(0))
        }
        Err(refusal) => return Err(refusal),
    };
    Ok(([(CONTENT_TYPE, TYPE_HANDSHAKE)], handshake.encode()?).into_response())
}

/// Where the database was after transaction `txid`, if that is part of the history up to `head`.
async fn pos_at(database: Arc<Database>, head: Pos, txid: Txid) -> Result<Pos, Refusal> {
    let found = blocking(move || fork::pos_at(&database, txid)).await??;
    found.filter(|pos| pos.txid <= head.txid).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            &format!("transaction {txid} is not in the history that is kept here"),
        )
        .with_pos(head)
    })
}

async fn append_records(
    AppState(state): App,
    name: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut body = body;
    let checked = permit(&state, &headers, &[Scope::Append], &name)
        .and_then(|()| parse_name(name))
        .and_then(|name| refuse_pulled(&state, name));
    let name = match checked {
        Ok(name) => name,
        Err(refusal) => {
            super::stream::drain(&mut body).await;
            return Err(refusal);
        }
    };
    let pos = append::append(&state, &name, &headers, body).await?;
    Ok(Json(pos_status(pos)).into_response())
}

async fn records(
    AppState(state): App,
    name: Name,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    permit(&state, &headers, &[Scope::Read], &name)?;
    let params = parse_params(params, &["after", "follow"])?;
    let follow = parse_txid(&params, "follow")?.unwrap_or(Txid(0)).0;
    if follow > u64::from(FOLLOW_VERSION) {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            &format!("this server sends streams of version follow={FOLLOW_VERSION}, not {follow}"),
        ));
    }
    let after = parse_txid(&params, "after")?.unwrap_or(Txid(0));
    let (database, durable) = known(&state, name).await?;
    if follow > 0 {
        return live::stream(&state, database, after, durable).await;
    }
    download::records(&state, database, after, durable.pos).await
}

async fn file(
    AppState(state): App,
    name: Name,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    permit(&state, &headers, &[Scope::Read], &name)?;
    let params = parse_params(params, &["txid", "at"])?;
    let given = |key: &str| params.get(key).map(String::as_str);
    let named = Named {
        txid: given("txid"),
        at: given("at"),
        ..Named::default()
    };
    let moment = Moment::parse("", named)?;
    let (database, durable) = known(&state, name).await?;
    download::file(&state, database, moment, &headers, durable.pos).await
}

async fn send_snapshot(
    AppState(state): App,
    name: Name,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    permit(&state, &headers, &[Scope::Read], &name)?;
    let params = parse_params(params, &["txid"])?;
    let txid = parse_txid(&params, "txid")?;
    let (database, durable) = known(&state, name).await?;
    snapshot::send(&state, database, txid, &headers, durable).await
}

async fn take_snapshot(
    AppState(state): App,
    name: Name,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, Refusal> {
    let checked = permit(&state, &headers, &[Scope::Append], &name)
        .and_then(|()| parse_name(name))
        .and_then(|name| refuse_pulled(&state, name));
    let taken = match checked {
        Ok(name) => snapshot::take(&state, &name, &headers, &mut body).await,
        Err(refusal) => Err(refusal),
    };
    if taken.is_err() {
        super::stream::drain(&mut body).await;
    }
    taken
}

/// What is pulled from a server has one source.
fn refuse_pulled(state: &State, name: DatabaseName) -> Result<DatabaseName, Refusal> {
    let database = state.registry.get(&name);
    match database.as_ref().and_then(|database| database.pull.get()) {
        None => Ok(name),
        Some(pull) => Err(Refusal::new(
            StatusCode::CONFLICT,
            &format!(
                "{name} follows {} here: push to that server, or under another name",
                pull.url()
            ),
        )),
    }
}

/// Who may use a route of the database `name`.
fn permit(
    state: &State,
    headers: &HeaderMap,
    scopes: &[Scope],
    name: &Name,
) -> Result<(), Refusal> {
    // A name that is none belongs to no token.
    let name = name.as_ref().map_or("", |Path(name)| name.as_str());
    state.gate.check(headers, scopes, Some(name))
}

fn parse_name(name: Name) -> Result<DatabaseName, Refusal> {
    let Ok(Path(name)) = name else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the name in the path is not text",
        ));
    };
    Ok(name.parse::<DatabaseName>()?)
}

fn parse_params(params: Params, known: &[&str]) -> Result<HashMap<String, String>, Refusal> {
    let bad = |what: &str| Refusal::new(StatusCode::BAD_REQUEST, what);
    let Ok(Query(given)) = params else {
        return Err(bad("the query cannot be read"));
    };
    let mut params = HashMap::new();
    for (key, value) in given {
        let shown = excerpt(&key, 40);
        if !known.contains(&key.as_str()) {
            let known = known.join(", ");
            return Err(bad(&format!("unknown parameter {shown} (known: {known})")));
        }
        if params.insert(key, value).is_some() {
            return Err(bad(&format!("the parameter {shown} is there twice")));
        }
    }
    Ok(params)
}

fn parse_txid(params: &HashMap<String, String>, key: &str) -> Result<Option<Txid>, Refusal> {
    let Some(text) = params.get(key) else {
        return Ok(None);
    };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(Some(Txid(number))),
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            &format!("{key}={} is not a transaction number", excerpt(text, 40)),
        )),
    }
}

/// A database of that name and where it durably stands.
async fn known(state: &Arc<State>, name: Name) -> Result<(Arc<Database>, Durable), Refusal> {
    let name = parse_name(name)?;
    let database = state
        .registry
        .get(&name)
        .ok_or_else(|| Refusal::unknown(name.as_str()))?;
    let durable = learn(state, &database).await?;
    Ok((database, durable))
}

async fn learn(state: &Arc<State>, database: &Arc<Database>) -> Result<Durable, Refusal> {
    if let Some(durable) = database.durable() {
        return Ok(durable);
    }
    let wait = state.limits.append_wait;
    let mut turn = database.turn(wait).await?;
    let database = Arc::clone(database);
    blocking(move || database.learn_durable(&mut turn, wait)).await?
}

/// Learns what can be learnt; what cannot shows in the databases' own errors.
async fn learn_all(state: &Arc<State>) {
    for database in state.registry.all() {
        if let Err(refusal) = learn(state, &database).await {
            tracing::debug!("{}: {}", database.name, refusal.error());
        }
    }
}

async fn all_infos(state: &Arc<State>) -> Result<Vec<DatabaseInfo>, Refusal> {
    learn_all(state).await;
    let state = Arc::clone(state);
    blocking(move || {
        state
            .registry
            .all()
            .iter()
            .map(|database| database.info())
            .collect()
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the work ended unexpectedly: {e}"),
        )
    })
}
