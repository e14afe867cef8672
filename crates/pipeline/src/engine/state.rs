//! What the engine knows, as it stands in a checkpoint. Derived from the journal: a version that cannot be read is
//! replayed, not migrated.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use dunlin_model::{AlertTransition, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Account, Due, Engine, Limits, RuleWords, alert::Episode, window::Windows};
use crate::{copies::device_hash, rules::RuleSet};

/// One device of the partition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Device {
    pub(super) hash: u64,
    pub(super) tenant: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) device_type: Arc<str>,
    /// The newest event time, and when it came.
    pub(super) newest: Timestamp,
    pub(super) newest_received_at: Timestamp,
    pub(super) heard_at: Timestamp,
    /// Records from before it are late.
    pub(super) watermark: Timestamp,
    /// The end of the next window to close; MAX if none is open.
    pub(super) next_close: Timestamp,
    /// The entry among the due ones that counts; MAX if none does.
    pub(super) queued_second: i64,
    /// Metrics whose rules were looked up, sorted.
    pub(super) metrics: Vec<u32>,
    /// By metric and rule.
    pub(super) cells: Vec<Cell>,
}

/// One rule on one device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) metric: u32,
    pub(super) rule: u32,
    pub(super) episode: Episode,
    pub(super) windows: Windows,
}

impl Device {
    pub(super) fn new(
        hash: u64,
        tenant: Arc<str>,
        name: &str,
        device_type: Arc<str>,
        heard_at: Timestamp,
    ) -> Self {
        Self {
            hash,
            tenant,
            name: name.into(),
            device_type,
            newest: Timestamp::MIN,
            newest_received_at: heard_at,
            heard_at,
            watermark: Timestamp::MIN,
            next_close: Timestamp::MAX,
            queued_second: i64::MAX,
            metrics: Vec::new(),
            cells: Vec::new(),
        }
    }
}

/// The whole of an engine's knowledge but for the copies, which are read from the journal again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    newest_received: Timestamp,
    forgotten: u64,
    accounts: BTreeMap<Box<str>, Account>,
    /// Cells name them by number.
    rules: Vec<RuleState>,
    /// Tenants and device types; devices name them by number.
    words: Vec<Box<str>>,
    devices: Vec<DeviceState>,
}

/// What is needed to know a rule again, and to say that it ended if it is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RuleState {
    content_hash: u64,
    said: RuleWords,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DeviceState {
    tenant: u32,
    name: Box<str>,
    device_type: u32,
    newest: Timestamp,
    newest_received_at: Timestamp,
    heard_at: Timestamp,
    watermark: Timestamp,
    queued_second: i64,
    cells: Vec<CellState>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CellState {
    rule: u32,
    episode: Episode,
    windows: Windows,
}

impl Engine {
    pub fn state(&self) -> State {
        let mut words = Numbered::default();
        let mut rules = Numbered::default();
        let devices = self.devices.iter().flatten().map(|d| DeviceState {
            tenant: words.number(&d.tenant, || d.tenant.as_ref().into()),
            name: d.name.clone(),
            device_type: words.number(&d.device_type, || d.device_type.as_ref().into()),
            newest: d.newest,
            newest_received_at: d.newest_received_at,
            heard_at: d.heard_at,
            watermark: d.watermark,
            queued_second: d.queued_second,
            cells: d
                .cells
                .iter()
                .map(|c| CellState {
                    rule: rules.number(&c.rule, || {
                        let rule = self.index.rule(c.rule);
                        RuleState { content_hash: rule.content_hash, said: RuleWords::of(rule) }
                    }),
                    episode: c.episode,
                    windows: c.windows.clone(),
                })
                .collect(),
        });
        let devices = devices.collect();
        State {
            newest_received: self.newest_received,
            forgotten: self.forgotten,
            accounts: self.accounts.clone(),
            rules: rules.list,
            words: words.list,
            devices,
        }
    }

    /// Takes up from a state that may have been kept under other rules: what a rule that is gone was firing is
    /// resolved, as by `reload`. `None`: the state contradicts itself.
    pub fn restore(
        limits: Limits,
        rules: &RuleSet,
        state: State,
        out: &mut Vec<AlertTransition>,
    ) -> Option<Self> {
        let mut engine = Self::new(limits, rules);
        engine.newest_received = state.newest_received;
        engine.forgotten = state.forgotten;
        engine.accounts = state.accounts;
        for kept in state.devices {
            let tenant = engine.index.word(state.words.get(kept.tenant as usize)?);
            let device_type = engine.index.word(state.words.get(kept.device_type as usize)?);
            let hash = device_hash(&tenant, &kept.name);
            let mut device = Device {
                newest: kept.newest,
                newest_received_at: kept.newest_received_at,
                watermark: kept.watermark,
                queued_second: kept.queued_second,
                ..Device::new(hash, tenant, &kept.name, device_type, kept.heard_at)
            };
            for cell in kept.cells {
                let rule = state.rules.get(cell.rule as usize)?;
                match engine.index.by_content(rule.content_hash) {
                    Some((metric, rule)) => {
                        device.cells.push(Cell {
                            metric,
                            rule,
                            episode: cell.episode,
                            windows: cell.windows,
                        });
                    }
                    None => device.say_forgotten(&rule.said, &cell.episode, out),
                }
            }
            device.cells.sort_unstable_by_key(|c| (c.metric, c.rule));
            device.find_next_close(&engine.index);
            let queued = kept.queued_second;
            let slot = engine.place(device);
            if queued != i64::MAX {
                engine.due.push(Reverse(Due { second: queued, hash, device: slot }));
            }
            engine.schedule(slot);
        }
        Some(engine)
    }
}

/// Values in the order of their first use.
struct Numbered<K, V> {
    numbers: hashbrown::HashMap<K, u32>,
    list: Vec<V>,
}

impl<K, V> Default for Numbered<K, V> {
    fn default() -> Self {
        Self { numbers: hashbrown::HashMap::new(), list: Vec::new() }
    }
}

impl<K: std::hash::Hash + Eq + Clone, V> Numbered<K, V> {
    fn number(&mut self, key: &K, value: impl FnOnce() -> V) -> u32 {
        *self.numbers.entry(key.clone()).or_insert_with(|| {
            self.list.push(value());
            (self.list.len() - 1) as u32
        })
    }
}
