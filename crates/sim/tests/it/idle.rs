use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use dunlin_sim::{
    backoff::Backoff,
    idle::{self, Config, IdleError, News},
    load::Identity,
    wire::Version,
};

use crate::broker::packet;

/// Lets in who comes, unless it is busy, and holds them.
#[derive(Clone, Default)]
struct Server {
    held: Arc<Mutex<Vec<TcpStream>>>,
    /// So many are told to come again.
    busy: Arc<Mutex<usize>>,
}

impl Server {
    fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, address) = (Self::default(), listener.local_addr().unwrap());
        let serving = server.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                packet(&mut stream);
                let busy = &mut *serving.busy.lock().unwrap();
                if *busy > 0 {
                    *busy -= 1;
                    stream.write_all(b"\x20\x02\0\x03").unwrap();
                } else {
                    stream.write_all(b"\x20\x02\0\0").unwrap();
                    serving.held.lock().unwrap().push(stream);
                }
            }
        });
        (server, address)
    }
}

fn config(target: SocketAddr) -> Config {
    Config {
        target,
        version: Version::V311,
        identities: vec![Identity { token: Some("token".into()), device: "a".into() }],
        connections: 150,
        first: 0,
        lasting: true,
        tls: None,
        reconnect_for: Duration::from_secs(60),
        backoff: Backoff { first: Duration::from_millis(400), max: Duration::from_millis(800) },
        seed: 1,
        duration: Duration::from_secs(600),
    }
}

#[test]
fn all_are_back_after_the_server_was_gone_and_then_busy() {
    let (server, address) = Server::start();
    let (told, hears) = mpsc::channel();
    std::thread::spawn(move || idle::hold(&config(address), |news| told.send(news).unwrap()));
    let patience = Duration::from_secs(60);
    assert!(matches!(hears.recv_timeout(patience), Ok(News::Holding(150))));
    for _ in 0..2 {
        *server.busy.lock().unwrap() = 40;
        let before = std::mem::take(&mut *server.held.lock().unwrap());
        assert_eq!(before.len(), 150);
        drop(before);
        let News::Back { lost, tries, refused, .. } = hears.recv_timeout(patience).unwrap() else {
            panic!("they come back");
        };
        assert_eq!((lost, tries, refused), (150, 190, [(3, 40)].into()));
    }
}

#[test]
fn without_a_second_try_they_stay_lost() {
    let (server, address) = Server::start();
    let config =
        Config { reconnect_for: Duration::ZERO, duration: Duration::from_secs(1), ..config(address) };
    let report = idle::hold(&config, |_| {
        let _all_are_in = server.busy.lock().unwrap();
        server.held.lock().unwrap().truncate(50);
    })
    .unwrap();
    assert_eq!((report.held, report.lost, report.reconnects), (50, 100, 0));
}

#[test]
fn a_server_that_refuses_the_first_ends_it() {
    let (server, address) = Server::start();
    *server.busy.lock().unwrap() = 1;
    let config = Config { reconnect_for: Duration::ZERO, ..config(address) };
    let error = idle::hold(&config, |_| ()).unwrap_err();
    assert!(matches!(&error, IdleError::Connect { reason, .. } if reason.contains("code 3")), "{error}");
}
