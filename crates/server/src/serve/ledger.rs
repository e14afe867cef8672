//! The account of every message, put together from three that count by themselves: the gateway what it accepted, the
//! journal its offsets, the store what it made of what it read. They must agree.
//!
//! They are read one after the other while records flow, so each is compared with the others' values before and after
//! it: when nothing flows, the bounds meet.

mod gone; // what no store can read any more

use std::{collections::BTreeMap, path::Path};

use dunlin_console::{Disagreement, GatewayAccount, LedgerView, RulesAccount, TenantLedger};
use dunlin_gateway::{Account, GatewayView};
use dunlin_journal::{Journal, Partition, Topic};
use dunlin_model::TenantId;
use dunlin_pipeline::{PipelineView, RejectedCounts, RejectedView, StoreView};
use dunlin_tsdb::{Counts, Tsdb};
use gone::Gone;

use crate::exit::Failure;

/// How things stood before any consumer ran and any door was open.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// What the store had read, by tenant.
    read: BTreeMap<TenantId, u64>,
    /// The end of the journal, by partition of telemetry.
    ends: Vec<u64>,
    /// Whose the records are that the store has not read: known if there is but one tenant.
    backlog_of: String,
    gone: Gone,
}

const REJECTED: Partition = Partition { topic: Topic::Rejected, index: 0 };
/// Stands in the ledger for messages whose tenant is not known (yet).
const NOBODY: &str = "-";

/// Who else counts.
#[derive(Clone, Copy)]
pub(crate) struct Counters<'a> {
    pub(crate) journal: &'a dyn Journal,
    pub(crate) tsdb: &'a dyn Tsdb,
    /// The gateway, if it is here; of others the journal alone tells.
    pub(crate) gateway: Option<&'a GatewayView>,
    pub(crate) store: &'a StoreView,
    pub(crate) rules: Option<&'a PipelineView>,
    pub(crate) rejected: &'a RejectedView,
}

impl Ledger {
    pub(crate) fn open(
        data: &Path,
        journal: &dyn Journal,
        tsdb: &dyn Tsdb,
        tenants: &[TenantId],
    ) -> Result<Self, Failure> {
        let backlog_of = match tenants {
            [only] => only.to_string(),
            _ => NOBODY.to_owned(),
        };
        let read = tsdb.counts().into_iter().map(|(tenant, counts)| (tenant, counts.read())).collect();
        let ends = partitions(journal).map(|at| journal.extent(at).next.0).collect();
        let gone = Gone::open(data, journal, tsdb)?;
        Ok(Self { read, ends, backlog_of, gone })
    }

    pub(crate) fn view(&self, counters: Counters<'_>) -> LedgerView {
        let gateway_before = counters.gateway.map(GatewayView::accounts).unwrap_or_default();
        let position_before = position(counters);
        let laid_aside = counters.journal.extent(REJECTED).next;
        let gone = self.gone.passed(counters.tsdb);
        let stored = counters.tsdb.counts();
        let store = counters.store.status();
        let position_after = position(counters);
        let journaled = journaled(counters.journal);
        let gateway = counters.gateway.map(GatewayView::accounts).unwrap_or_default();

        let mut problems = Vec::new();
        let new = journaled - self.ends.iter().sum::<u64>();
        let accepted_before = total(&gateway_before, |a| a.accepted);
        let accepted_at_most = total(&gateway, |a| a.accepted + a.in_flight + a.failed);
        if counters.gateway.is_some() && !(accepted_before..=accepted_at_most).contains(&new) {
            problems.push(of_all(format!(
                "the gateway accepted {accepted_before} to {accepted_at_most} records, the journal took {new}"
            )));
        }
        let (counted_up_to, rejected) = counters.rejected.counts_up_to();
        let undecodable = undecodable(&rejected);
        let passage = Passage {
            position_before,
            position_after,
            read: stored.values().map(Counts::read).sum(),
            // Laid aside before the store goes on, and counted a little later.
            skipped: match counted_up_to >= laid_aside {
                true => undecodable,
                false => undecodable + store.undecodable,
            },
            gone,
        };
        problems.extend(passage.problem().map(of_all));
        let idle = passage.is_idle(journaled) && total(&gateway, |a| a.in_flight) == 0;
        let mut tenants = BTreeMap::<String, TenantLedger>::new();
        for (tenant, account) in &gateway {
            tenants.entry(tenant.to_string()).or_default().gateway = gateway_account(account);
        }
        for (tenant, counts) in &stored {
            let ledger = tenants.entry(tenant.to_string()).or_default();
            ledger.stored = counts.stored;
            ledger.duplicate = counts.duplicate;
            ledger.expired = counts.expired;
            ledger.sampled = counts.sampled;
            ledger.readings_stored = counts.readings;
        }
        // What gateways elsewhere have accepted is known from the journal, and whose it is when it is read.
        let elsewhere = match counters.gateway {
            Some(_) => None,
            None => Some(journaled.saturating_sub(position_after)),
        };
        if store.unread > 0 || elsewhere.is_some_and(|records| records > 0) {
            tenants.entry(self.backlog_of.clone()).or_default();
        }
        for (tenant, ledger) in &mut tenants {
            let before = self.read.get(tenant.as_str()).copied().unwrap_or(0);
            let unread = if *tenant == self.backlog_of { store.unread } else { 0 };
            let backlog = store.backlog.get(tenant).copied().unwrap_or(0) + unread;
            let read = ledger.stored + ledger.duplicate + ledger.expired + ledger.sampled;
            let accepted = before + backlog + ledger.gateway.accepted;
            let agree = accepted <= read && read <= accepted + ledger.gateway.failed;
            if let Some(records) = elsewhere {
                ledger.in_flight = if *tenant == self.backlog_of { records } else { 0 };
                ledger.accepted = read + ledger.in_flight;
                continue;
            }
            if idle && !agree {
                let words =
                    format!("{tenant}: {accepted} records accepted, {read} accounted for by the store");
                problems.push(Disagreement { tenant: Some(tenant.clone()), words });
            }
            ledger.accepted = accepted.max(read);
            ledger.in_flight = ledger.accepted - read;
        }
        for ((tenant, reason), records) in rejected {
            let tenant = if tenant.is_empty() { NOBODY.to_owned() } else { tenant };
            tenants.entry(tenant).or_default().rejected.insert(reason.as_str().to_owned(), records);
        }
        let rules = counters.rules.map(|rules| rules.status().accounts).unwrap_or_default();
        for (tenant, account) in rules {
            tenants.entry(tenant).or_default().rules = RulesAccount {
                read: account.read,
                evaluated: account.evaluated,
                late: account.late,
                duplicate: account.copies,
                failed: account.failed,
            };
        }
        let gone = Some(self.gone.records());
        LedgerView { balanced: problems.is_empty(), problems, gone, tenants }
    }
}

/// What the store made of the records it passed, looked at while it went on.
#[derive(Debug, Clone, Copy)]
struct Passage {
    /// Before and after the rest was looked at.
    position_before: u64,
    position_after: u64,
    read: u64,
    /// Not decodable.
    skipped: u64,
    gone: u64,
}

impl Passage {
    fn problem(&self) -> Option<String> {
        let Self { position_before, position_after, read, skipped, gone } = self;
        let is_short = read + skipped + gone < *position_before;
        let is_over = read + gone > *position_after;
        (is_short || is_over).then(|| {
            format!(
                "the store is at {position_before} to {position_after} and accounts for {read} records, \
                 {skipped} more were not decodable, {gone} were gone before it came"
            )
        })
    }

    /// Whether the store had passed all there is before it was asked what it made of it: what came in between is not
    /// in its counts.
    fn is_idle(&self, journaled: u64) -> bool {
        self.position_before == self.position_after && self.position_after == journaled
    }
}

fn of_all(words: String) -> Disagreement {
    Disagreement { tenant: None, words }
}

fn gateway_account(account: &Account) -> GatewayAccount {
    GatewayAccount {
        received: account.received,
        accepted: account.accepted,
        events: account.events,
        replies: account.replies,
        rejected: account.rejected.iter().map(|(reason, n)| (reason.as_str().to_owned(), *n)).collect(),
        failed: account.failed,
        in_flight: account.in_flight,
    }
}

fn total(accounts: &BTreeMap<TenantId, Account>, of: impl Fn(&Account) -> u64) -> u64 {
    accounts.values().map(of).sum()
}

/// Records ever appended to telemetry.
fn journaled(journal: &dyn Journal) -> u64 {
    partitions(journal).map(|at| journal.extent(at).next.0).sum()
}

/// Records the store has passed, over all partitions.
fn position(counters: Counters<'_>) -> u64 {
    partitions(counters.journal).filter_map(|at| counters.tsdb.position(at)).map(|offset| offset.0).sum()
}

/// Records of the journal that could not be decoded, ever: laid aside, they name no tenant.
fn undecodable(rejected: &RejectedCounts) -> u64 {
    rejected.iter().filter(|((tenant, _), _)| tenant.is_empty()).map(|(_, n)| n).sum()
}

pub(crate) fn partitions(journal: &dyn Journal) -> impl Iterator<Item = Partition> {
    (0..journal.partitions(Topic::Telemetry)).map(|index| Partition::new(Topic::Telemetry, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STILL: Passage = Passage { position_before: 10, position_after: 10, read: 8, skipped: 1, gone: 1 };

    #[test]
    fn a_store_that_goes_on_meanwhile_is_not_idle() {
        assert!(STILL.is_idle(10));
        assert!(!STILL.is_idle(11), "more is to come");
        // The tenth was stored after the counts were read: no tenant's account can be held against them.
        assert!(!Passage { position_before: 9, ..STILL }.is_idle(10));
    }

    #[test]
    fn what_the_store_passed_is_read_or_skipped_or_was_gone() {
        assert_eq!(STILL.problem(), None);
        assert_eq!(Passage { position_after: 12, read: 10, ..STILL }.problem(), None);
        assert!(Passage { read: 7, ..STILL }.problem().is_some(), "one is lost");
        assert!(Passage { skipped: 0, ..STILL }.problem().is_some());
        assert!(Passage { read: 10, skipped: 0, ..STILL }.problem().is_some(), "one is twice");
    }
}
