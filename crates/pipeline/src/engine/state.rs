//! What the engine knows, as it stands in a checkpoint. Derived from the journal: a version that cannot be read is
//! replayed, not migrated.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use dunlin_model::{AlertTransition, Slot, Timestamp};
use serde::{Deserialize, Serialize};

use smallvec::SmallVec;

use super::{
    Account, Changed, Engine, Limits,
    clock::DeviceClock,
    device::{Cell, Device, Held, NOT_DUE, RuleWords},
    due::Due,
    groups::{Groups, GroupsState},
};
use crate::{
    copies::device_hash,
    rules::{RuleSet, Scalar},
    watch::{Fixed, Watch},
};

/// The whole of an engine's knowledge but for the copies, which are read from the journal again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    newest_received: Timestamp,
    forgotten: u64,
    evicted: u64,
    accounts: BTreeMap<Box<str>, Account>,
    groups: GroupsState,
    /// Cells name them by number.
    rules: Vec<RuleState>,
    /// Tenants and device types; devices name them by number.
    words: Vec<Box<str>>,
    devices: Vec<DeviceState>,
    /// Devices that are no longer there, by tenant and name: where this is what changed.
    gone: Vec<(u32, Box<str>)>,
}

/// What is needed to know a rule again, and to say that it ended if it is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RuleState {
    content_hash: u64,
    said: RuleWords,
    is_over_a_group: bool,
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
    /// Cells name them by number.
    windows: Vec<Fixed>,
    cells: Vec<(u32, Watch)>,
}

impl Engine {
    /// Everything.
    pub fn state(&self) -> State {
        self.state_of(self.devices.iter().flatten(), &[])
    }

    /// Whether `changes` would leave something out.
    pub(crate) fn is_whole_due(&self) -> bool {
        !self.changed.is_noted
    }

    /// What has changed since this was last asked, or everything.
    pub(crate) fn changes(&mut self, is_whole: bool) -> State {
        let changed = std::mem::replace(&mut self.changed, Changed { is_noted: true, ..Changed::default() });
        if is_whole {
            for slot in changed.devices {
                if let Some(device) = &mut self.devices[slot as usize] {
                    device.is_changed = false;
                }
            }
            return self.state();
        }
        let mut slots = changed.devices;
        slots.retain(|slot| {
            let device = self.devices[*slot as usize].as_mut();
            device.is_some_and(|device| std::mem::take(&mut device.is_changed))
        });
        let devices = slots.iter().filter_map(|slot| self.devices[*slot as usize].as_ref());
        self.state_of(devices, &changed.gone)
    }

    fn state_of<'a>(&'a self, of: impl Iterator<Item = &'a Device>, gone: &[(Arc<str>, Box<str>)]) -> State {
        let mut words = Numbered::<Box<str>, Box<str>>::default();
        let mut rules = Numbered::default();
        let names = self.index.metric_names();
        let mut word = |text: &str| words.number(text, || (text.into(), text.into()));
        let gone = gone.iter().map(|(tenant, name)| (word(tenant), name.clone())).collect();
        let devices = of.map(|d| DeviceState {
            tenant: word(&d.tenant),
            name: d.name.as_str().into(),
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
            windows: d.windows.to_vec(),
            cells: d
                .cells
                .iter()
                .map(|cell| {
                    let number = rules.number(&cell.rule, || {
                        let rule = self.index.rule(cell.rule);
                        let state = RuleState {
                            content_hash: rule.content_hash,
                            said: RuleWords::of(rule),
                            is_over_a_group: rule.group.is_some(),
                        };
                        (cell.rule, state)
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
            groups: self.groups.state(),
            rules: rules.list,
            words: words.list,
            devices,
            gone,
        }
    }

    /// Takes up from a state that may have been kept under other rules: what a rule that is gone was firing is
    /// resolved, as by `reload`. The first of the states is whole, each other has what changed after the one before.
    /// `None`: they contradict themselves.
    pub fn restore(
        limits: Limits,
        rules: &RuleSet,
        states: Vec<State>,
        out: &mut Vec<AlertTransition>,
    ) -> Option<Self> {
        let mut engine = Self::new(limits, rules);
        let newest = states.last()?;
        engine.newest_received = newest.newest_received;
        engine.forgotten = newest.forgotten;
        engine.evicted = newest.evicted;
        engine.accounts = newest.accounts.clone();
        engine.groups = Groups::restore(newest.groups.clone());
        // The newest state that speaks of a device counts.
        let mut spoken_of = HashSet::<(Arc<str>, Box<str>)>::new();
        let is_alone = states.len() == 1;
        for State { rules, words, devices, gone, .. } in states.into_iter().rev() {
            let rules = Kept { words: &words, rules: &rules };
            for kept in devices {
                let tenant = engine.index.word(words.get(kept.tenant as usize)?);
                if is_alone || spoken_of.insert((tenant.clone(), kept.name.clone())) {
                    engine.take_in(tenant, kept, &rules, out)?;
                }
            }
            // Who came back after that is among the devices.
            for (tenant, name) in gone {
                let tenant = engine.index.word(words.get(tenant as usize)?);
                spoken_of.insert((tenant, name));
            }
        }
        Some(engine)
    }

    fn take_in(
        &mut self,
        tenant: Arc<str>,
        kept: DeviceState,
        of: &Kept<'_>,
        out: &mut Vec<AlertTransition>,
    ) -> Option<()> {
        let device_type = self.index.word(of.words.get(kept.device_type as usize)?);
        let hash = device_hash(&tenant, &kept.name);
        let mut device = Device::new(&self.index, hash, tenant, &kept.name, device_type, kept.heard_at);
        device.clock = kept.clock;
        device.newest = kept.newest;
        device.newest_received_at = kept.newest_received_at;
        device.watermark = kept.watermark;
        device.queued = kept.queued;
        for (time, readings) in kept.held {
            let mut named = SmallVec::new();
            for (word, value) in readings {
                let metric = self.index.metric(of.words.get(word as usize)?);
                named.extend(metric.map(|metric| (metric, value)));
            }
            device.held.push_back(Held { time, readings: named });
        }
        let mut cells = Vec::with_capacity(kept.cells.len());
        for (rule, watch) in kept.cells {
            let kept_rule = of.rules.get(rule as usize)?;
            match self.index.by_content(kept_rule.content_hash) {
                Some(number) => {
                    let (rule, windows) = (self.index.rule(number), kept.windows.len());
                    if !watch.is_of(rule) || watch.windows().any(|window| window as usize >= windows) {
                        return None;
                    }
                    let holds = watch.is_firing();
                    if rule.group.is_some() {
                        self.groups.recount(device.group_key(rule), holds);
                    }
                    cells.push(Cell::new(number, watch, holds));
                }
                None if kept_rule.is_over_a_group => {}
                None => device.say_forgotten(&kept_rule.said, &watch, out),
            }
        }
        device.add_kept(&mut self.index, cells, &kept.windows);
        let queued = kept.queued;
        let slot = self.place(device);
        if queued != NOT_DUE {
            self.due.push(Due { step: queued, hash, device: slot });
        }
        self.schedule(slot);
        Some(())
    }
}

/// What the devices of a state name by number.
struct Kept<'a> {
    words: &'a [Box<str>],
    rules: &'a [RuleState],
}

impl State {
    /// The same for another number of partitions: the devices of each of these go where their slots are. `states` are
    /// whole, one for each old partition.
    pub(crate) fn moved(states: Vec<Self>, partitions: u16) -> Vec<Self> {
        let newest_received = states.iter().map(|state| state.newest_received).max();
        let groups =
            states.iter().map(|state| &state.groups).fold(GroupsState::default(), GroupsState::moved);
        let empty = Self {
            newest_received: newest_received.unwrap_or(Timestamp::MIN),
            forgotten: 0,
            evicted: 0,
            accounts: BTreeMap::new(),
            groups,
            rules: Vec::new(),
            words: Vec::new(),
            devices: Vec::new(),
            gone: Vec::new(),
        };
        let mut moved = vec![empty; usize::from(partitions.max(1))];
        let of = states.len().max(1);
        for (n, state) in states.into_iter().enumerate() {
            // What was counted is nobody's in particular, and counts once.
            let heir = &mut moved[n * usize::from(partitions.max(1)) / of];
            heir.forgotten += state.forgotten;
            heir.evicted += state.evicted;
            for (tenant, account) in state.accounts {
                *heir.accounts.entry(tenant).or_default() += account;
            }
            // Numbers of words and rules are each state's own.
            let bases: Vec<(u32, u32)> = moved
                .iter_mut()
                .map(|to| {
                    let base = (to.words.len() as u32, to.rules.len() as u32);
                    to.words.extend(state.words.iter().cloned());
                    to.rules.extend(state.rules.iter().cloned());
                    base
                })
                .collect();
            for mut device in state.devices {
                let Some(tenant) = state.words.get(device.tenant as usize) else { continue };
                let to = usize::from(Slot::of(tenant, &device.name).partition(partitions));
                let (words, rules) = bases[to];
                device.tenant += words;
                device.device_type += words;
                device
                    .held
                    .iter_mut()
                    .flat_map(|(_, readings)| readings)
                    .for_each(|(word, _)| *word += words);
                device.cells.iter_mut().for_each(|(rule, _)| *rule += rules);
                moved[to].devices.push(device);
            }
        }
        moved
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

impl<K: std::hash::Hash + Eq, V> Numbered<K, V> {
    fn number<Q>(&mut self, key: &Q, fresh: impl FnOnce() -> (K, V)) -> u32
    where
        Q: std::hash::Hash + hashbrown::Equivalent<K> + ?Sized,
    {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let ((key, value), number) = (fresh(), self.list.len() as u32);
        self.numbers.insert(key, number);
        self.list.push(value);
        number
    }
}
