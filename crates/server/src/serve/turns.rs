//! Roles that one process has at a time: another one that is started waits until that one is gone, and takes over.
//!
//! Who has a role holds a partition of a group of Kafka's; who was not heard of for longer than a session has lost it.

use dunlin_journal::{Journal, Membership, Topic, Turn};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{Role, Roles},
    exit::Failure,
};

/// The roles, and the topics of one partition that stand for them. Gateways and the rules share theirs.
const ALONE: [(Role, &str, Topic); 2] =
    [(Role::Store, "role.store", Topic::Rejected), (Role::Alerting, "role.alerting", Topic::Alerts)];

#[derive(Debug, Default)]
pub(super) struct Turns(Vec<(Role, Membership)>);

impl Turns {
    /// Waits for the turn in every role; `None` if the process is told to end before.
    pub(super) async fn wait(journal: &dyn Journal, roles: &Roles) -> Result<Option<Self>, Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut turns = Vec::new();
        for (role, group, topic) in ALONE.into_iter().filter(|(role, ..)| roles.has(*role)) {
            let mut membership = journal.join(group, topic);
            let waiting = async {
                tracing::info!(?role, "waiting for its turn");
                while !matches!(membership.next().await, Turn::Given(_)) {}
            };
            tokio::select! {
                () = waiting => turns.push((role, membership)),
                _ = terminate.recv() => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
            }
        }
        Ok(Some(Self(turns)))
    }

    /// Comes back, with the role, when another process has it.
    pub(super) async fn over(&mut self) -> Role {
        let each = self.0.iter_mut().map(|(role, membership)| {
            Box::pin(async {
                while matches!(membership.next().await, Turn::Given(_)) {}
                *role
            })
        });
        match each.len() {
            0 => std::future::pending().await,
            _ => futures::future::select_all(each).await.0,
        }
    }
}
