use std::time::{Duration, Instant};

use dunlin_model::TenantId;
use dunlin_registry::{Config, Registry};
use futures::future::join_all;
use tokio::time::timeout;

use crate::{Lab, devices::named, server::Server};

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

#[tokio::test]
async fn a_server_that_crashes_is_an_error_and_is_found_again() {
    let server = Server::start();
    let mut lab = Lab::postgres_at(&server.url()).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();

    server.stop();
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

    server.freeze();
    nobody_answers(&registry).await;
    // Nor those who have no patience of their own: what they leave behind comes back to the pool.
    for _ in 0..9 {
        let _ = timeout(Duration::from_millis(50), registry.check()).await;
    }
    nobody_answers(&registry).await;
    server.thaw();
    timeout(GIVEN_UP_BY, until_it_answers(&registry)).await.unwrap();
    join_all((0..9).map(async |n| {
        registry.add_device(&tenant, &named(&format!("after-{n}"), false)).await.unwrap();
    }))
    .await;
}

/// A process that froze or was cut off within a transaction keeps its locks for seconds, not for hours.
#[tokio::test]
async fn a_lock_of_one_who_is_gone_is_given_up() {
    let server = Server::start();
    let mut lab = Lab::postgres_at(&server.url()).await;
    impatient(&mut lab);
    let registry = lab.open().await;
    let other = lab.open().await;
    // Applying alerts renders what people hear within the transaction: there it stands still.
    let firing = [crate::alerts::transition(dunlin_model::AlertPhase::Firing, 1, 1)];
    let channels = ["w".to_owned()];
    let (reached, in_the_middle) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let frozen = std::thread::spawn({
        let (firing, channels) = (firing.clone(), channels.clone());
        let may_go_on = std::sync::Mutex::new(may_go_on);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stand_still = |_: &dunlin_model::AlertTransition| {
                reached.send(()).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
                String::new()
            };
            runtime.block_on(other.apply_alerts("alerting", 0, &firing, 1, &channels, stand_still))
        }
    });
    in_the_middle.recv().unwrap();
    let applied =
        async || registry.apply_alerts("alerting", 0, &firing, 1, &channels, |_| String::new()).await;
    let taken = timeout(GIVEN_UP_BY, async {
        loop {
            match applied().await {
                Ok(applied) => break applied,
                Err(error) => assert!(error.is_unavailable(), "{error:?}"),
            }
        }
    });
    assert_eq!(taken.await.unwrap().notifications, 1);
    go_on.send(()).unwrap();
    assert!(frozen.join().unwrap().is_err(), "it has lost its transaction, and says so");
}

#[tokio::test]
async fn a_start_waits_for_a_server_that_comes_and_not_for_ever() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::at(port);
    let clock = || dunlin_model::Clock::new(|| dunlin_model::Timestamp::from_micros(1));
    let config = Config { url: server.url(), start_seconds_max: 0, ..Config::default() };
    assert!(Registry::open(&config, clock()).await.unwrap_err().is_unavailable());

    let config = Config { start_seconds_max: 60, ..config };
    let starting = tokio::task::spawn_blocking(move || server.start_again());
    let (opened, started) = tokio::join!(Registry::open(&config, clock()), starting);
    started.unwrap();
    opened.unwrap().check().await.unwrap();
}
