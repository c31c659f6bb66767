//! `mycelite_replicas`: where the log goes, and how far behind each replica is.

use super::host::Host;
use super::table::{Query, Row, Rows, Table, Value};
use crate::error::Result;

/// One row for each replica of the main database, or of the schema given: `SELECT * FROM mycelite_replicas('aux')`.
pub(super) struct Replicas;

impl Table for Replicas {
    const SCHEMA: &'static str = "CREATE TABLE mycelite_replicas(url TEXT, state TEXT, acked_txid INTEGER, \
         lag_txids INTEGER, lag_bytes INTEGER, lag_ms INTEGER, last_error TEXT, schema TEXT HIDDEN)";
    const ARGUMENTS: &'static [i32] = &[7];

    fn rows(host: &Host, query: &Query) -> Result<Rows> {
        let schema = match &query.arguments[0] {
            Some(Value::Text(schema)) => schema.clone(),
            Some(_) => return Ok(Box::new(std::iter::empty())),
            None => "main".to_owned(),
        };
        let replicas = host.database(&schema)?.status().replicas;
        Ok(Box::new((1..).zip(replicas).map(
            move |(rowid, replica)| {
                let values = vec![
                    Value::Text(replica.url),
                    Value::Text(replica.state),
                    Value::from(replica.acked_txid),
                    Value::from(replica.lag_txids),
                    Value::from(replica.lag_bytes),
                    Value::from(replica.lag_ms),
                    match replica.last_error {
                        error if error.is_empty() => Value::Null,
                        error => Value::Text(error),
                    },
                    Value::Text(schema.clone()),
                ];
                Ok(Row { rowid, values })
            },
        )))
    }
}
