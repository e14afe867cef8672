//! What the engine knows, as it stands in a checkpoint. Derived from the journal: a version that cannot be read is
//! replayed, not migrated.

use std::{cmp::Reverse, collections::BTreeMap};

use dunlin_model::{AlertTransition, Timestamp};
use serde::{Deserialize, Serialize};

use smallvec::SmallVec;

use super::{
    Account, Due, Engine, Limits,
    clock::DeviceClock,
    device::{Device, Held, NOT_DUE, RuleWords},
};
use crate::{
    copies::device_hash,
    rules::{RuleSet, Scalar},
    watch::Watch,
};

/// The whole of an engine's knowledge but for the copies, which are read from the journal again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    newest_received: Timestamp,
    forgotten: u64,
    evicted: u64,
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
    clock: DeviceClock,
    newest: Timestamp,
    newest_received_at: Timestamp,
    heard_at: Timestamp,
    watermark: Timestamp,
    queued: i64,
    /// Metrics are words.
    held: Vec<(Timestamp, Vec<(u32, Scalar)>)>,
    cells: Vec<(u32, Watch)>,
}

impl Engine {
    pub fn state(&self) -> State {
        let mut words = Numbered::<Box<str>, Box<str>>::default();
        let mut rules = Numbered::default();
        let names = self.index.metric_names();
        let mut word = |text: &str| words.number(&text.into(), || text.into());
        let devices = self.devices.iter().flatten().map(|d| DeviceState {
            tenant: word(&d.tenant),
            name: d.name.clone(),
            device_type: word(&d.device_type),
            clock: d.clock,
            newest: d.newest,
            newest_received_at: d.newest_received_at,
            heard_at: d.heard_at,
            watermark: d.watermark,
            queued: d.queued,
            held: d
                .held
                .iter()
                .map(|held| {
                    let named =
                        |(metric, value): &(u32, Scalar)| (word(names[*metric as usize]), value.clone());
                    (held.time, held.readings.iter().map(named).collect())
                })
                .collect(),
            cells: d
                .cells
                .iter()
                .map(|cell| {
                    let number = rules.number(&cell.rule, || {
                        let rule = self.index.rule(cell.rule);
                        RuleState { content_hash: rule.content_hash, said: RuleWords::of(rule) }
                    });
                    (number, cell.watch.clone())
                })
                .collect(),
        });
        let devices = devices.collect();
        State {
            newest_received: self.newest_received,
            forgotten: self.forgotten,
            evicted: self.evicted,
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
        engine.evicted = state.evicted;
        engine.accounts = state.accounts;
        for kept in state.devices {
            let tenant = engine.index.word(state.words.get(kept.tenant as usize)?);
            let device_type = engine.index.word(state.words.get(kept.device_type as usize)?);
            let hash = device_hash(&tenant, &kept.name);
            let mut device = Device {
                clock: kept.clock,
                newest: kept.newest,
                newest_received_at: kept.newest_received_at,
                watermark: kept.watermark,
                queued: kept.queued,
                ..Device::new(hash, tenant, &kept.name, device_type, kept.heard_at)
            };
            for (time, readings) in kept.held {
                let mut named = SmallVec::new();
                for (word, value) in readings {
                    let metric = engine.index.metric(state.words.get(word as usize)?);
                    named.extend(metric.map(|metric| (metric, value)));
                }
                device.held.push_back(Held { time, readings: named });
            }
            for (rule, watch) in kept.cells {
                let kept = state.rules.get(rule as usize)?;
                match engine.index.by_content(kept.content_hash) {
                    Some(rule) if watch.is_of(engine.index.rule(rule)) => {
                        device.add_cell(&engine.index, rule, Some(watch));
                    }
                    Some(_) => return None,
                    None => device.say_forgotten(&kept.said, &watch, out),
                }
            }
            let queued = kept.queued;
            let slot = engine.place(device);
            if queued != NOT_DUE {
                engine.due.push(Reverse(Due { step: queued, hash, device: slot }));
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
