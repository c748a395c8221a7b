//! Values of ours as SQLite keeps them. What cannot be read back counts as damage of the file.

use std::error::Error;
use std::str::FromStr;

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Sizes are kept as signed integers; none comes near the limit.
pub(super) fn from_size(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Times are kept as microseconds since 1970.
pub(super) fn from_time(time: Timestamp) -> i64 {
    time.as_microsecond()
}

pub(super) fn size(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|error| unreadable(column, Type::Integer, error))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_microsecond(row.get(column)?)
        .map_err(|error| unreadable(column, Type::Integer, error))
}

pub(super) fn time_if_any(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    if_any(row, column, time)
}

pub(super) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    Digest::from_bytes(row.get_ref(column)?.as_blob()?)
        .ok_or_else(|| unreadable(column, Type::Blob, "neither 32 nor 64 bytes"))
}

pub(super) fn digest_if_any(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Digest>> {
    if_any(row, column, digest)
}

pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: Error + Send + Sync + 'static>,
{
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|error: T::Err| unreadable(column, Type::Text, error))
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| unreadable(column, Type::Text, error))
}

pub(super) fn if_any<T>(
    row: &Row<'_>,
    column: usize,
    read: fn(&Row<'_>, usize) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => read(row, column).map(Some),
    }
}

/// Text of our own values; their shapes never fail.
pub(super) fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn unreadable(
    column: usize,
    kind: Type,
    reason: impl Into<Box<dyn Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, reason.into())
}
