use std::time::Duration;

use dunlin_sim::publisher::{Config, Publisher};
use futures::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// More than all buffers between two sockets.
const LARGE: usize = 64 << 20;
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

#[tokio::test]
async fn a_message_whose_publish_was_cancelled_counts_as_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let mut publisher = Publisher::new(Config {
        target,
        client_id: "cancelled".into(),
        token: "token".into(),
        topic: "t".into(),
        window: 16,
        reconnect_for: Duration::from_secs(600),
    });
    let greet = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _connect = stream.read(&mut [0; 1_024]).await.unwrap();
        stream.write_all(&CONNACK).await.unwrap();
        stream
    };
    let (_stream, connected) = tokio::join!(greet, publisher.connect());
    connected.unwrap();
    assert_eq!(publisher.sent(), 0);
    assert!(publisher.publish(&vec![b' '; LARGE]).now_or_never().is_none());
    assert_eq!((publisher.sent(), publisher.acked()), (1, 0));
}
