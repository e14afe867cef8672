use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Longer than anything here takes.
const NEVER: Duration = Duration::from_secs(600);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";

fn door(routes: Router, change: impl FnOnce(&mut Limits)) -> (Http, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut limits = Limits { connections_max: 100, head_max: NEVER, drain_max: NEVER };
    change(&mut limits);
    (Http::serve(listener, None, routes, limits).unwrap(), address)
}

/// All that is said until the other side closes.
async fn answer(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut said = Vec::new();
    // A connection that is cut off ends as well.
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn half_a_request_is_closed_in_time() {
    let (door, address) = door(Router::new(), |limits| limits.head_max = Duration::from_millis(50));
    for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: here\r\n"] {
        let said = tokio::time::timeout(NEVER / 10, answer(address, begun)).await.expect("is closed");
        assert!(!said.contains("200 OK"), "{said}");
    }
    door.stop().await.unwrap();
}

#[tokio::test]
async fn there_are_no_more_connections_than_allowed_and_all_get_their_turn() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let handler = move || async move {
        most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        open.fetch_sub(1, SeqCst);
    };
    let (door, address) = door(Router::new().route("/", get(handler)), |limits| limits.connections_max = 2);
    let answers = futures::future::join_all((0..8).map(|_| answer(address, REQUEST))).await;
    assert!(answers.iter().all(|said| said.starts_with("HTTP/1.1 200 OK")), "{answers:?}");
    assert!(seen.load(SeqCst) <= 2);
    door.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_answers_what_is_under_way() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let go_on = Arc::new(tokio::sync::Notify::new());
    let (began, gate) = (begun.clone(), go_on.clone());
    let handler = move || async move {
        began.notify_one();
        gate.notified().await;
        "at last"
    };
    let (door, address) = door(Router::new().route("/", get(handler)), |_| {});
    let idle = tokio::spawn(answer(address, b""));
    let under_way = tokio::spawn(answer(address, REQUEST));
    begun.notified().await;
    let stopping = tokio::spawn(door.stop());
    assert_eq!(idle.await.unwrap(), "");
    go_on.notify_one();
    assert!(under_way.await.unwrap().ends_with("at last"));
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_hangs_does_not_hold_up_a_stop() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let began = begun.clone();
    let handler = move || async move {
        began.notify_one();
        std::future::pending::<()>().await
    };
    let (door, address) = door(Router::new().route("/", get(handler)), |limits| {
        limits.drain_max = Duration::from_millis(50);
    });
    let hanging = tokio::spawn(answer(address, REQUEST));
    begun.notified().await;
    door.stop().await.unwrap();
    assert_eq!(hanging.await.unwrap(), "");
}
