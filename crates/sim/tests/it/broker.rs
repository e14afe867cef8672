use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

use dunlin_sim::certificates::{AUTHORITY, SERVER, SERVER_KEY};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// What the server does with the n-th message it receives, counted over all connections from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Ack,
    Refuse(u8),
    /// Takes the message and closes the connection without an answer.
    Hang,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) user: String,
    pub(crate) topic: String,
    pub(crate) packet_id: u16,
    pub(crate) dup: bool,
    pub(crate) payload: String,
}

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Broker {
    pub(crate) fn start(answer: fn(usize) -> Answer) -> Self {
        Self::serve_all(answer, |stream| Box::new(stream))
    }

    /// With TLS, and a certificate asked of the client.
    pub(crate) fn start_tls(answer: fn(usize) -> Answer, certificates: &Path) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificates.join(AUTHORITY)).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let chain = vec![CertificateDer::from_pem_file(certificates.join(SERVER)).unwrap()];
        let key = PrivateKeyDer::from_pem_file(certificates.join(SERVER_KEY)).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        Self::serve_all(answer, move |stream| {
            Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream))
        })
    }

    fn serve_all(
        answer: fn(usize) -> Answer,
        wrap: impl Fn(TcpStream) -> Box<dyn Duplex> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = Self { address: listener.local_addr().unwrap(), received: Arc::default() };
        let serving = broker.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (serving, stream) = (serving.clone(), wrap(stream));
                std::thread::spawn(move || serving.serve(stream, answer));
            }
        });
        broker
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Returns when the peer is gone, or broken off.
    fn serve(&self, mut stream: Box<dyn Duplex>, answer: fn(usize) -> Answer) -> Option<()> {
        let (_, connect) = packet(&mut stream)?;
        let v5 = connect[6] == 5;
        let after_properties = if v5 { 11 + usize::from(connect[10]) } else { 10 };
        let (_, rest) = text(&connect[after_properties..]);
        let user = if connect[7] & 0x80 == 0 { String::new() } else { text(rest).0 };
        stream.write_all(if v5 { b"\x20\x03\0\0\0" } else { b"\x20\x02\0\0" }).ok()?;
        loop {
            let (first, body) = packet(&mut stream)?;
            if first & 0xf0 != 0x30 {
                continue;
            }
            let (topic, rest) = text(&body);
            let id = [rest[0], rest[1]];
            let message = Received {
                user: user.clone(),
                topic,
                packet_id: u16::from_be_bytes(id),
                dup: first & 8 != 0,
                payload: String::from_utf8(rest[2 + usize::from(v5)..].to_vec()).unwrap(),
            };
            let n = {
                let mut received = self.received.lock().unwrap();
                received.push(message);
                received.len() - 1
            };
            match answer(n) {
                Answer::Ack => stream.write_all(&[0x40, 2, id[0], id[1]]).ok()?,
                Answer::Refuse(code) => stream.write_all(&[0x40, 3, id[0], id[1], code]).ok()?,
                Answer::Hang => return None,
            }
        }
    }
}

pub(crate) fn packet(stream: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first, body))
}

pub(crate) fn text(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).unwrap(), &bytes[2 + length..])
}
