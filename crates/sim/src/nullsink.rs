//! A server that keeps nothing: it shows what the loader and the MQTT layer can do by themselves.

use std::{io, net::TcpListener};

use ntex::service::cfg::SharedCfg;
use ntex_mqtt::{MqttServiceConfig, v3};

/// Messages of one connection that may be unacknowledged.
const RECEIVE_MAX: u16 = 4_096;
const RECEIVE_BYTES_MAX: usize = 4 << 20;

/// Acknowledges MQTT 3.1.1 publishes at once, until the process ends.
pub fn run(listener: TcpListener, workers: usize) -> io::Result<()> {
    ntex::rt::System::new("nullsink", ntex::rt::DefaultRuntime).block_on(async move {
        ntex::server::build()
            .listen("mqtt", listener, async |_| {
                v3::MqttServer::new(async |handshake: v3::Handshake| Ok::<_, ()>(handshake.ack((), false)))
                    .publish(async |_: v3::Publish| Ok::<_, ()>(()))
            })?
            .config(
                "mqtt",
                SharedCfg::new("nullsink").add(
                    MqttServiceConfig::new()
                        .set_max_receive(RECEIVE_MAX)
                        .set_max_receive_size(RECEIVE_BYTES_MAX),
                ),
            )
            .workers(workers)
            .run()
            .await
    })
}
