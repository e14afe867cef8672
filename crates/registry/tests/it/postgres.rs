use dunlin_model::{AlertState, Clock, TenantId, Timestamp, chain};
use dunlin_registry::{Alert, Config, Registry, RegistryError};
use futures::future::join_all;
use sqlx::{Connection, PgConnection};

use crate::{
    Lab,
    alerts::{alert, put},
    server,
    server::Server,
};

fn clock() -> Clock {
    Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000))
}

#[tokio::test]
async fn processes_that_start_together_make_one_schema() {
    let lab = Lab::postgres().await;
    let opened = join_all((0..6).map(|_| Registry::open(&lab.config, clock()))).await;
    let tenant = TenantId::default_tenant();
    opened[0].as_ref().unwrap().add_tenant(&tenant).await.unwrap();
    for registry in &opened {
        assert!(registry.as_ref().unwrap().has_tenant(&tenant).await.unwrap());
    }
    lab.drop_schema().await;
}

#[tokio::test]
async fn text_that_postgres_cannot_keep_is_refused_and_blocks_nothing() {
    let lab = Lab::postgres().await;
    let registry = lab.open().await;
    let good = alert("pump-1", 1, AlertState::Firing);
    let mut work = registry.alert_work().await.unwrap();
    let nul = Alert { condition: "a\0b".into(), ..good.clone() };
    assert!(work.put_alerts(&[nul]).await.unwrap_err().is_refusal());
    drop(work);
    put(&registry, &[good]).await;
    lab.drop_schema().await;
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused_at_the_start() {
    let mut root = PgConnection::connect(server::url()).await.unwrap();
    let name = format!("dunlin_latin_{}", std::process::id());
    let make = format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
    );
    sqlx::query(sqlx::AssertSqlSafe(make)).execute(&mut root).await.unwrap();
    let (before, _) = server::url().rsplit_once('/').unwrap();
    let config = Config { url: format!("{before}/{name}"), ..Config::default() };
    let refused = Registry::open(&config, clock()).await.unwrap_err();
    assert!(matches!(&refused, RegistryError::Encoding(found) if found == "SQL_ASCII"), "{refused:?}");
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(&mut root).await.unwrap();
}

#[tokio::test]
async fn a_password_may_stand_in_a_file() {
    let server = Server::start();
    let mut root = PgConnection::connect(&server.url()).await.unwrap();
    for make in
        ["CREATE ROLE guarded LOGIN PASSWORD 'pass word'", "CREATE SCHEMA guarded AUTHORIZATION guarded"]
    {
        sqlx::query(make).execute(&mut root).await.unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = Config {
        url: format!("postgres://guarded@127.0.0.1:{}/postgres", server.port),
        password_file: Some(file.path().into()),
        ..Config::default()
    };
    std::fs::write(file.path(), "pass word\n").unwrap();
    Registry::open(&config, clock()).await.unwrap().check().await.unwrap();

    std::fs::write(file.path(), "guess\n").unwrap();
    let refused = Registry::open(&config, clock()).await.unwrap_err();
    assert!(chain(&refused).contains("password authentication failed"), "{}", chain(&refused));
}

#[tokio::test]
async fn a_server_is_trusted_by_its_certificate() {
    let server = Server::start();
    let at = |host: &str, root: &str| Config {
        url: format!("postgres://dunlin@{host}:{}/postgres?sslmode=verify-full{root}", server.port),
        ..Config::default()
    };
    let root = format!("&sslrootcert={}", server.certificate().display());
    Registry::open(&at("localhost", &root), clock()).await.unwrap().check().await.unwrap();

    for wrong in [at("localhost", ""), at("127.0.0.1", &root)] {
        let refused = Registry::open(&wrong, clock()).await.unwrap_err();
        assert!(chain(&refused).contains("certificate"), "{}", chain(&refused));
    }
}
