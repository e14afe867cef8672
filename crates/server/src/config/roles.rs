use clap::ValueEnum;
use dunlin_journal::Topic;
use serde::{Deserialize, Serialize};

/// A part of the platform that a process may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// The devices' doors, and sources.
    Gateway,
    /// The rules; processes share the partitions.
    Pipeline,
    /// Telemetry into the time-series store.
    Store,
    /// Alerts, and telling people.
    Alerting,
    /// What devices say about their commands, into the registry.
    Fleet,
    /// The API for people.
    Console,
}

impl Role {
    pub(crate) const ALL: [Self; 6] =
        [Self::Gateway, Self::Pipeline, Self::Store, Self::Alerting, Self::Fleet, Self::Console];
}

/// Which of them. Every role at most once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Roles(pub(crate) Vec<Role>);

impl Default for Roles {
    fn default() -> Self {
        Self(Role::ALL.into())
    }
}

impl Roles {
    pub(crate) fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    pub(crate) fn are_all(&self) -> bool {
        Role::ALL.into_iter().all(|role| self.has(role))
    }

    /// What they read of the journal as it comes.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        let of = |role: &Role| match role {
            Role::Gateway => &[Topic::Sessions, Topic::Commands][..],
            Role::Pipeline => &[Topic::Telemetry, Topic::Partials],
            Role::Store => &[Topic::Telemetry, Topic::Rejected],
            Role::Alerting => &[Topic::Alerts],
            Role::Fleet => &[Topic::CommandReplies],
            Role::Console => &[],
        };
        self.0.iter().flat_map(of).copied().collect()
    }

    /// What must be otherwise.
    pub(crate) fn check(&self, is_shared_journal: bool) -> Result<(), String> {
        if self.0.is_empty() {
            return Err("roles must name at least one".into());
        }
        if !self.are_all() && !is_shared_journal {
            return Err("a process with some of the roles needs a journal that others reach: journal.kind = \"kafka\"".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_together_is_said() {
        use Role::*;
        Roles::default().check(false).unwrap();
        let said = |roles: &[Role], shared| Roles(roles.into()).check(shared).unwrap_err();
        assert!(said(&[], true).contains("at least one"));
        assert!(said(&[Gateway], false).contains("kafka"));
        for roles in [
            &[Gateway][..],
            &[Pipeline],
            &[Store],
            &[Alerting],
            &[Fleet],
            &[Console],
            &[Store, Console],
            &[Gateway, Pipeline],
        ] {
            Roles(roles.into()).check(true).unwrap();
        }
    }
}
