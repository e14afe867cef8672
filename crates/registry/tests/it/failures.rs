use std::time::{Duration, Instant};

use dunlin_model::{Clock, TenantId, Timestamp};
use dunlin_registry::{Config, Registry};
use futures::future::join_all;
use tokio::time::timeout;

use crate::{Lab, devices::named, network::Network, server::Server};

/// Quick to give up.
fn impatient(lab: &mut Lab) {
    let config = std::mem::take(&mut lab.config);
    lab.config = Config { connections_max: 3, connect_millis_max: 1_000, answer_millis_max: 500, ..config };
}

/// What any question may take while nobody answers: a connection, an answer, and the graces.
const GIVEN_UP_BY: Duration = Duration::from_secs(5);

/// More than there are connections ask, and all of them learn in time that nobody answers.
async fn nobody_answers(registry: &Registry) {
    let tenant = TenantId::default_tenant();
    let asked = Instant::now();
    let ask = || async { registry.has_tenant(&tenant).await };
    for answer in join_all((0..9).map(|_| ask())).await {
        assert!(answer.unwrap_err().is_unavailable());
    }
    assert!(asked.elapsed() < GIVEN_UP_BY, "{:?}", asked.elapsed());
    let device = named("pump-2", false);
    assert!(registry.add_device(&tenant, &device).await.unwrap_err().is_unavailable());
}

async fn until_it_answers(registry: &Registry) {
    while registry.check().await.is_err() {}
}

/// All connections of the pool.
async fn until_all_answer(registry: &Registry) {
    while join_all((0..3).map(|_| registry.check())).await.iter().any(Result::is_err) {}
}

#[tokio::test]
async fn a_server_that_crashes_is_an_error_and_is_found_again() {
    let server = Server::start();
    let mut lab = Lab::postgres_at(&server.url()).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();

    server.crash();
    nobody_answers(&registry).await;
    server.start_again();
    until_it_answers(&registry).await;
    let token = registry.add_device(&tenant, &named("pump-1", false)).await.unwrap();
    assert!(registry.device_by_token(token.reveal()).await.unwrap().is_some());
    assert_eq!(registry.tenants().await.unwrap(), [tenant], "what was committed is there");
}

#[tokio::test]
async fn a_server_that_is_frozen_holds_nobody_up_and_is_found_again() {
    let server = Server::start();
    let mut lab = Lab::postgres_at(&server.url()).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    join_all((0..9).map(|_| registry.check())).await; // Every connection is there.
    let other = lab.open().await;
    join_all((0..9).map(|_| other.check())).await;

    server.freeze();
    nobody_answers(&registry).await;
    // Nor those who have no patience of their own: what they leave behind comes back to the pool.
    for _ in 0..9 {
        let _ = timeout(Duration::from_millis(50), registry.check()).await;
    }
    nobody_answers(&registry).await;
    timeout(GIVEN_UP_BY, other.close()).await.unwrap();
    server.thaw();
    timeout(GIVEN_UP_BY * 3, until_all_answer(&registry)).await.unwrap();
    for n in 0..9 {
        registry.add_device(&tenant, &named(&format!("after-{n}"), false)).await.unwrap();
    }
}

/// Those that were going back to the pool at that moment, too.
#[tokio::test]
async fn connections_that_a_firewall_forgets_are_replaced() {
    let server = Server::start();
    let network = Network::to(server.port).await;
    let mut lab = Lab::postgres_at(&format!("postgres://dunlin@127.0.0.1:{}/postgres", network.port)).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    for _ in 0..3 {
        let asking = join_all((0..9).map(|_| async { while registry.check().await.is_ok() {} }));
        let _ = timeout(Duration::from_millis(200), asking).await;
        network.forget_connections();
        timeout(GIVEN_UP_BY * 3, until_it_answers(&registry)).await.unwrap();
    }
    // All of the pool are there again.
    timeout(GIVEN_UP_BY * 3, until_all_answer(&registry)).await.unwrap();
}

/// A process that froze or was cut off within a transaction keeps its locks for seconds, not for hours.
#[tokio::test]
async fn a_lock_of_one_who_is_gone_is_given_up() {
    let server = Server::start();
    let mut lab = Lab::postgres_at(&server.url()).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let frozen = lab.open().await.alert_work().await.unwrap();
    let taken = timeout(GIVEN_UP_BY, async {
        loop {
            match registry.alert_work().await {
                Ok(work) => break work,
                Err(error) => assert!(error.is_unavailable(), "{error:?}"),
            }
        }
    });
    taken.await.unwrap().commit().await.unwrap();
    assert!(frozen.commit().await.is_err(), "it has lost its transaction, and is told");
}

#[tokio::test]
async fn who_only_asks_does_not_wait_for_those_who_write() {
    let mut lab = Lab::postgres().await;
    impatient(&mut lab);
    let (registry, other) = (lab.open().await, lab.open().await);
    let held = other.alert_work().await.unwrap();
    let waiting = join_all((0..9).map(|_| registry.alert_work()));
    let asking = async {
        for _ in 0..20 {
            registry.has_tenant(&TenantId::default_tenant()).await.unwrap();
        }
    };
    futures::join!(waiting, asking);
    drop(held);
    lab.drop_schema().await;
}

/// As after a failover, when connections to the old one are still there.
#[tokio::test]
async fn a_server_that_takes_no_writes_is_not_there() {
    let server = Server::start();
    let lab = Lab::postgres_at(&server.url()).await;
    let registry = lab.open().await;
    let read_only = async |is: &str| {
        lab.run(&format!("ALTER SYSTEM SET default_transaction_read_only = {is}")).await;
        lab.run("SELECT pg_reload_conf()").await;
    };
    read_only("on").await;
    timeout(GIVEN_UP_BY, async { while registry.check().await.is_ok() {} }).await.unwrap();
    let refused = registry.add_tenant(&TenantId::default_tenant()).await.unwrap_err();
    assert!(refused.is_unavailable(), "{refused:?}");
    let config = Config { start_seconds_max: 0, ..lab.config.clone() };
    assert!(Registry::open(&config, Clock::new(|| Timestamp::from_micros(1))).await.is_err());
    read_only("off").await;
    timeout(GIVEN_UP_BY, until_it_answers(&registry)).await.unwrap();
    registry.add_tenant(&TenantId::default_tenant()).await.unwrap();
}

#[tokio::test]
async fn a_start_waits_for_a_server_that_comes_and_not_for_ever() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::at(port);
    let clock = || Clock::new(|| Timestamp::from_micros(1));
    let config = Config { url: server.url(), start_seconds_max: 0, ..Config::default() };
    assert!(Registry::open(&config, clock()).await.unwrap_err().is_unavailable());

    let config = Config { start_seconds_max: 60, ..config };
    let starting = tokio::task::spawn_blocking(move || server.start_again());
    let (opened, started) = tokio::join!(Registry::open(&config, clock()), starting);
    started.unwrap();
    opened.unwrap().check().await.unwrap();
}
