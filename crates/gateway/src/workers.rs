//! The workers' threads. Each takes connections from the doors for itself, so none is handed from thread to thread.

use std::{
    io::{self, ErrorKind},
    net::TcpListener as StdListener,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use ntex::{
    io::IoConfig,
    rt::{DefaultRuntime, System, from_tcp_stream, spawn},
    service::cfg::SharedCfg,
    time::sleep,
    util::BytePageSize,
};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    delivery::WRITE_BUFFER_BYTES,
    listen::Listener,
    mqtt,
    worker::{Shared, Worker},
};

/// Read buffers above this give way to back-pressure; also what one read takes at most.
const READ_BUFFER_BYTES: usize = 16 << 10;
const READ_BUFFER_BYTES_LOW: usize = 1 << 10;
const WRITE_BUFFER_BYTES_LOW: usize = 4 << 10;
/// Buffers that a worker keeps for connections that become active.
const BUFFERS_KEPT_MAX: usize = 256;
/// How many more connections than its part a worker may have before it leaves new ones to the others.
const CONNECTIONS_ABOVE_PART_MAX: usize = 16;
const ABOVE_PART_PAUSE: Duration = Duration::from_millis(1);
/// How long a door is left alone when the system has no file or memory for one more connection.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Workers(Vec<Thread>);

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// Ends it when it is dropped.
    end: oneshot::Sender<()>,
}

impl Workers {
    /// Comes back when all of them listen.
    pub(crate) fn start(shared: &Arc<Shared>, doors: Vec<(StdListener, Listener)>) -> io::Result<Self> {
        let doors = Arc::new(doors);
        let mut threads = Vec::new();
        for number in 0..shared.worker_count {
            let (shared, doors) = (shared.clone(), doors.clone());
            let (end, ended) = oneshot::channel();
            let (started, starting) = mpsc::channel();
            let run = move || {
                let name = format!("gateway-{number}");
                let system = System::build().name(name).disable_signals().build(DefaultRuntime);
                system.block_on(async move {
                    let listening = listen(&shared, &doors);
                    let is_listening = listening.is_ok();
                    let _gone = started.send(listening);
                    if is_listening {
                        let _dropped = ended.await;
                    }
                });
            };
            let handle = thread::Builder::new().name(format!("gateway-{number}")).spawn(run)?;
            threads.push(Thread { handle, end });
            starting.recv().map_err(|_| io::Error::other("a worker ended at its start"))??;
        }
        Ok(Self(threads))
    }

    /// Ends the threads, whatever they do. Blocks.
    pub(crate) fn end(self) {
        for Thread { handle, end } in self.0 {
            drop(end);
            let _panicked = handle.join();
        }
    }
}

/// Begins to take connections, on the worker's own thread.
fn listen(shared: &Arc<Shared>, doors: &[(StdListener, Listener)]) -> io::Result<()> {
    let worker = Worker::start(shared.clone());
    for (socket, listener) in doors {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let config = SharedCfg::new(listener.name()).add(io_config()).build();
        spawn(accept(TcpListener::from_std(socket)?, config, Rc::new(listener.clone()), worker.clone()));
    }
    Ok(())
}

async fn accept(door: TcpListener, config: SharedCfg, listener: Rc<Listener>, worker: Rc<Worker>) {
    loop {
        // The others are woken as well, and one of them has less.
        while worker.is_above_its_part() {
            sleep(ABOVE_PART_PAUSE).await;
        }
        let accepted = door.accept().await;
        if worker.is_leaving() {
            return;
        }
        // The gateway's streams are made of the system's.
        match accepted.and_then(|(stream, _)| from_tcp_stream(stream.into_std()?, config.clone())) {
            Ok(io) => {
                let (listener, worker) = (listener.clone(), worker.clone());
                spawn(async move { mqtt::serve(io, &listener, &worker).await });
            }
            // Of that connection alone.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                if worker.logs.allow() {
                    tracing::error!(%error, door = listener.name(), "no connection can be taken");
                }
                sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}

fn io_config() -> IoConfig {
    IoConfig::new()
        .set_read_buf(READ_BUFFER_BYTES, READ_BUFFER_BYTES_LOW, BUFFERS_KEPT_MAX)
        .set_write_buf(WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES_LOW, BUFFERS_KEPT_MAX)
        .set_write_page_size(BytePageSize::Size4)
}

impl Worker {
    /// Whether others should take what comes.
    fn is_above_its_part(&self) -> bool {
        let part = self.shared.connections() / self.shared.worker_count;
        self.connections.borrow().len() > part + part / 8 + CONNECTIONS_ABOVE_PART_MAX
    }
}
