use sqlx::{
    FromRow, Postgres, SqlSafeStr, SqlStr, Sqlite, postgres::PgRow, query, query_as, sqlite::SqliteRow,
};

use super::{
    Executor,
    postgres::{Lent, within},
};

/// A statement with its parameters, for either database.
#[derive(Debug)]
pub(crate) struct Statement {
    text: SqlStr,
    parameters: Vec<Parameter>,
    is_kept: bool,
}

/// Typed also when it is NULL: PostgreSQL wants to know.
#[derive(Debug)]
pub(crate) enum Parameter {
    Text(Option<String>),
    Integer(Option<i64>),
    Real(f64),
    Truth(bool),
}

/// A row that either database gives.
pub(crate) trait Record:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Record for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

pub(crate) fn sql(text: impl SqlSafeStr) -> Statement {
    Statement { text: text.into_sql_str(), parameters: Vec::new(), is_kept: true }
}

macro_rules! bound {
    ($query:expr, $parameters:expr) => {
        $parameters.into_iter().fold($query, |query, parameter| match parameter {
            Parameter::Text(text) => query.bind(text),
            Parameter::Integer(integer) => query.bind(integer),
            Parameter::Real(real) => query.bind(real),
            Parameter::Truth(truth) => query.bind(truth),
        })
    };
}

/// Runs `$query` where it is to run, and makes one thing of the two answers.
macro_rules! run {
    ($statement:expr, $on:expr, $query:ident::<DB $(, $row:ty)?>.$run:ident, $answer:expr) => {{
        let Statement { text, parameters, is_kept } = $statement;
        match $on.into() {
            Executor::SqlitePool(pool) => {
                bound!($query::<Sqlite $(, $row)?>(text).persistent(is_kept), parameters).$run(pool).await.map($answer)
            }
            Executor::SqliteTransaction(connection) => {
                bound!($query::<Sqlite $(, $row)?>(text).persistent(is_kept), parameters).$run(connection).await.map($answer)
            }
            Executor::PostgresPool(pool, answer_max) => {
                let mut connection = Lent::of(pool).await?;
                let query = bound!($query::<Postgres $(, $row)?>(text).persistent(is_kept), parameters);
                within(answer_max, query.$run(&mut *connection)).await.map($answer)
            }
            Executor::PostgresTransaction(connection, answer_max) => {
                let query = bound!($query::<Postgres $(, $row)?>(text).persistent(is_kept), parameters);
                within(answer_max, query.$run(connection)).await.map($answer)
            }
        }
    }};
}

impl Statement {
    /// Prepared once and used again by each connection; not for a text that is seldom the same.
    pub(crate) fn persistent(self, is_kept: bool) -> Self {
        Self { is_kept, ..self }
    }

    pub(crate) fn bind(mut self, parameter: impl Into<Parameter>) -> Self {
        self.parameters.push(parameter.into());
        self
    }

    /// How many rows it changed.
    pub(crate) async fn execute(self, on: impl Into<Executor<'_>>) -> Result<u64, sqlx::Error> {
        run!(self, on, query::<DB>.execute, |done| done.rows_affected())
    }

    pub(crate) async fn fetch_one<T: Record>(self, on: impl Into<Executor<'_>>) -> Result<T, sqlx::Error> {
        run!(self, on, query_as::<DB, T>.fetch_one, |row| row)
    }

    pub(crate) async fn fetch_optional<T: Record>(
        self,
        on: impl Into<Executor<'_>>,
    ) -> Result<Option<T>, sqlx::Error> {
        run!(self, on, query_as::<DB, T>.fetch_optional, |row| row)
    }

    pub(crate) async fn fetch_all<T: Record>(
        self,
        on: impl Into<Executor<'_>>,
    ) -> Result<Vec<T>, sqlx::Error> {
        run!(self, on, query_as::<DB, T>.fetch_all, |rows| rows)
    }
}

impl From<&str> for Parameter {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<Option<&str>> for Parameter {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<Option<String>> for Parameter {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Option<&String>> for Parameter {
    fn from(text: Option<&String>) -> Self {
        Self::Text(text.cloned())
    }
}

impl From<String> for Parameter {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<&String> for Parameter {
    fn from(text: &String) -> Self {
        Self::Text(Some(text.clone()))
    }
}

impl From<i64> for Parameter {
    fn from(integer: i64) -> Self {
        Self::Integer(Some(integer))
    }
}

impl From<Option<i64>> for Parameter {
    fn from(integer: Option<i64>) -> Self {
        Self::Integer(integer)
    }
}

impl From<f64> for Parameter {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

impl From<bool> for Parameter {
    fn from(truth: bool) -> Self {
        Self::Truth(truth)
    }
}
