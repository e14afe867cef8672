use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A network to a server on this machine that can forget the connections there are, as a firewall does: they are silent for
/// good, and new ones work.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) port: u16,
    forgotten: watch::Sender<u32>,
}

impl Network {
    pub(crate) async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let forgotten = watch::Sender::new(0);
        let forgets = forgotten.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server_port, forgets.clone()));
            }
        });
        Self { port, forgotten }
    }

    pub(crate) fn forget_connections(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }
}

async fn carry(mut client: TcpStream, server_port: u16, mut forgets: watch::Receiver<u32>) {
    forgets.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        // Neither end hears of it.
        _ = forgets.changed() => std::future::pending().await,
    }
}
