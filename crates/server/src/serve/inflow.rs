//! The rules' question "what is still to come?", answered by the gateway.

use std::sync::OnceLock;

use dunlin_gateway::GatewayView;
use dunlin_model::Timestamp;
use dunlin_pipeline::Inflow;

/// Before there is a gateway, nothing comes.
#[derive(Debug, Default)]
pub(crate) struct GatewayInflow(OnceLock<GatewayView>);

impl GatewayInflow {
    /// Telemetry comes through this gateway from now on.
    pub(crate) fn is_through(&self, gateway: GatewayView) {
        // There is one gateway in a process.
        let _ = self.0.set(gateway);
    }
}

impl Inflow for GatewayInflow {
    fn oldest_under_way(&self) -> Option<Timestamp> {
        self.0.get()?.oldest_under_way()
    }
}
