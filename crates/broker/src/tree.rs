//! Filters as a tree of levels: a publish visits the nodes that its topic leads to, and no others.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use hashbrown::HashMap;
use indexmap::IndexMap;

use crate::{
    gateways::GatewayNumber,
    session::{Session, SessionId, Subscription},
    topic::{Filter, is_server_topic},
};

#[derive(Debug, Default)]
pub(crate) struct Tree {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Box<Node>, foldhash::fast::RandomState>,
    any_level: Option<Box<Node>>,
    /// Most nodes are only on the way to others.
    here: Option<Box<Leaf>>,
    /// Filters that end in `#` below this node.
    below: Option<Box<Leaf>>,
}

/// Who has subscribed with one filter.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    pub(crate) subscribers: Subscribers,
    /// By name, so that who is in several gets its copies in one order, whenever it subscribed.
    groups: Vec<Group>,
}

type Subscribers = IndexMap<SessionId, Subscriber, foldhash::fast::RandomState>;

#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) session: Arc<Session>,
    pub(crate) subscription: Subscription,
}

/// Sessions that share one subscription: each message goes to one of them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: Box<str>,
    pub(crate) members: Subscribers,
    turn: AtomicUsize,
}

impl Tree {
    /// Subscribes, or changes the subscription. True if it is new.
    pub(crate) fn insert(
        &mut self,
        filter: Filter<'_>,
        session: Arc<Session>,
        subscription: Subscription,
    ) -> bool {
        let leaf = self.root.grow(filter.path);
        let (id, subscriber) = (session.id, Subscriber { session, subscription });
        let subscribers = match filter.group {
            None => &mut leaf.subscribers,
            Some(group) => leaf.group(&group_name(group, filter.path)),
        };
        subscribers.insert(id, subscriber).is_none()
    }

    /// True if there was such a subscription.
    pub(crate) fn remove(&mut self, filter: Filter<'_>, id: SessionId) -> bool {
        let group = filter.group.map(|group| group_name(group, filter.path));
        self.root.prune(filter.path, &mut |leaf| leaf.remove(group.as_deref(), id))
    }

    /// Shows all leaves whose filter matches `topic`.
    pub(crate) fn visit<'a>(&'a self, topic: &str, see: &mut impl FnMut(&'a Leaf)) {
        let root = &self.root;
        if is_server_topic(topic) {
            let (first, rest) = split(topic);
            if let Some(child) = root.children.get(first) {
                child.visit(rest, see);
            }
            return;
        }
        root.visit(Some(topic), see);
    }
}

/// A group is one of its name and its filter.
fn group_name(group: &str, path: &str) -> String {
    format!("{group}/{path}")
}

fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    }
}

impl Node {
    fn grow(&mut self, path: &str) -> &mut Leaf {
        let (level, rest) = split(path);
        let child = match level {
            "#" => return self.below.get_or_insert_default(),
            "+" => self.any_level.get_or_insert_default(),
            name => self.children.entry_ref(name).or_default(),
        };
        match rest {
            None => child.here.get_or_insert_default(),
            Some(rest) => child.grow(rest),
        }
    }

    /// Applies `change` to the leaf of `path`, if there is one, and removes the nodes that have become empty.
    fn prune(&mut self, path: &str, change: &mut impl FnMut(&mut Leaf) -> bool) -> bool {
        let (level, rest) = split(path);
        let child = match level {
            "#" => return prune(&mut self.below, change),
            "+" => self.any_level.as_deref_mut(),
            name => self.children.get_mut(name).map(|child| &mut **child),
        };
        let Some(child) = child else { return false };
        let changed = match rest {
            None => prune(&mut child.here, change),
            Some(rest) => child.prune(rest, change),
        };
        if child.is_empty() {
            match level {
                "+" => self.any_level = None,
                name => drop(self.children.remove(name)),
            }
        }
        changed
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any_level.is_none() && self.here.is_none() && self.below.is_none()
    }

    fn visit<'a>(&'a self, path: Option<&str>, see: &mut impl FnMut(&'a Leaf)) {
        // "a/#" matches "a" too.
        if let Some(below) = &self.below {
            see(below);
        }
        let Some(path) = path else {
            if let Some(here) = &self.here {
                see(here);
            }
            return;
        };
        let (level, rest) = split(path);
        if let Some(child) = self.children.get(level) {
            child.visit(rest, see);
        }
        if let Some(child) = &self.any_level {
            child.visit(rest, see);
        }
    }
}

/// Changes the leaf, if there is one, and removes it if it has become empty.
fn prune(place: &mut Option<Box<Leaf>>, change: &mut impl FnMut(&mut Leaf) -> bool) -> bool {
    let Some(leaf) = place else { return false };
    let changed = change(leaf);
    if leaf.is_empty() {
        *place = None;
    }
    changed
}

impl Leaf {
    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty()
    }

    fn group(&mut self, name: &str) -> &mut Subscribers {
        let at = self.place(name).unwrap_or_else(|at| {
            let (name, members) = (name.into(), Subscribers::default());
            self.groups.insert(at, Group { name, members, turn: AtomicUsize::new(0) });
            at
        });
        &mut self.groups[at].members
    }

    fn remove(&mut self, group: Option<&str>, id: SessionId) -> bool {
        let Some(name) = group else { return self.subscribers.swap_remove(&id).is_some() };
        let Ok(at) = self.place(name) else { return false };
        let members = &mut self.groups[at].members;
        let removed = members.swap_remove(&id).is_some();
        if members.is_empty() {
            self.groups.remove(at);
        }
        removed
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.groups.binary_search_by(|group| (*group.name).cmp(name))
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }
}

impl Group {
    /// The member whose turn it is: one that is connected, here or elsewhere, if there is any.
    pub(crate) fn choose(&self) -> Option<&Subscriber> {
        let there = |session: &Session| session.is_connected() || session.is_elsewhere();
        let turn = self.turn.fetch_add(1, Relaxed);
        self.nth_of(turn, there).or_else(|| self.nth_of(turn, |_| true))
    }

    /// The one whose turn it is of those that are connected here and in no log.
    pub(crate) fn choose_here(&self) -> Option<&Subscriber> {
        let turn = self.turn.fetch_add(1, Relaxed);
        self.nth_of(turn, |session| session.is_connected() && !session.id.is_logged())
    }

    /// The first from `turn` on, round and round, that is one to choose.
    fn nth_of(&self, turn: usize, is_one: impl Fn(&Session) -> bool) -> Option<&Subscriber> {
        let count = self.members.len();
        let nth = |n: usize| self.members.get_index(turn.wrapping_add(n) % count).map(|(_, member)| member);
        (0..count).filter_map(nth).find(|member| is_one(&member.session))
    }

    /// The member that `seed` leads to, as every gateway and every run of the same log finds it: so of those that are in
    /// the log, one that is open, if there are any; else one of the gateway that it leads to, which is `me` or another.
    pub(crate) fn choose_by_log(&self, seed: u64, me: Option<GatewayNumber>) -> Option<&Subscriber> {
        let mut logged: Vec<&Subscriber> =
            self.members.values().filter(|member| member.session.id.is_logged()).collect();
        if logged.is_empty() {
            let gateways: BTreeSet<_> = self.members.keys().filter_map(|id| id.gateway()).collect();
            let chosen = gateways.iter().nth((seed % (gateways.len().max(1) as u64)) as usize)?;
            return if me.is_none_or(|me| me == *chosen) { self.choose_here() } else { None };
        }
        if logged.iter().any(|member| member.session.is_open()) {
            logged.retain(|member| member.session.is_open());
        }
        logged.sort_by_key(|member| member.session.id);
        Some(logged[(seed % logged.len() as u64) as usize])
    }
}

#[cfg(test)]
pub(crate) mod tests;
