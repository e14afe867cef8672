//! The last retained message of each topic.

use std::{collections::BTreeMap, sync::Arc};

use dunlin_model::Timestamp;

use crate::{message::Message, topic::is_server_topic};

/// What a level costs that has no other beside it: a node, and the smallest map to hold it.
pub(crate) const LEVEL_BYTES: usize = 330;

#[derive(Debug, Default)]
pub(crate) struct Retained {
    root: Node,
    count: usize,
    bytes: usize,
}

/// Sorted, so that a subscriber gets retained messages in one order whatever the order they came in.
#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<Box<str>, Box<Node>>,
    message: Option<Arc<Message>>,
}

impl Retained {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn set(&mut self, message: Arc<Message>) {
        let mut node = &mut self.root;
        for level in message.topic.split('/') {
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Box::default());
            }
            node = node.children.get_mut(level).expect("inserted when it was missing");
        }
        self.bytes += message.retained_bytes();
        self.count += 1;
        if let Some(before) = node.message.replace(message) {
            self.bytes -= before.retained_bytes();
            self.count -= 1;
        }
    }

    pub(crate) fn clear(&mut self, topic: &str) {
        if let Some(before) = self.root.clear(topic.split('/')) {
            self.bytes -= before.retained_bytes();
            self.count -= 1;
        }
    }

    pub(crate) fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        let node = topic
            .split('/')
            .try_fold(&self.root, |node, level| node.children.get(level).map(|child| &**child))?;
        node.message.as_ref()
    }

    /// Forgets what has expired.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let mut expired = Vec::new();
        self.each(&mut |message| {
            if message.is_expired(now) {
                expired.push(message.topic.clone());
            }
        });
        expired.iter().for_each(|topic| self.clear(topic));
    }

    pub(crate) fn each<'a>(&'a self, see: &mut impl FnMut(&'a Arc<Message>)) {
        self.root.each(see);
    }

    /// Shows the messages whose topic `filter` matches.
    pub(crate) fn matching<'a>(&'a self, filter: &str, see: &mut impl FnMut(&'a Arc<Message>)) {
        self.root.matching(Some(filter), true, see);
    }
}

impl Node {
    fn clear<'a>(&mut self, mut path: impl Iterator<Item = &'a str>) -> Option<Arc<Message>> {
        let Some(level) = path.next() else { return self.message.take() };
        let child = self.children.get_mut(level)?;
        let cleared = child.clear(path);
        if child.message.is_none() && child.children.is_empty() {
            self.children.remove(level);
        }
        cleared
    }

    fn each<'a>(&'a self, see: &mut impl FnMut(&'a Arc<Message>)) {
        self.message.iter().for_each(&mut *see);
        self.children.values().for_each(|child| child.each(see));
    }

    fn matching<'a>(&'a self, path: Option<&str>, first: bool, see: &mut impl FnMut(&'a Arc<Message>)) {
        let Some(path) = path else { return self.message.iter().for_each(see) };
        let (level, rest) = match path.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (path, None),
        };
        let visible = |name: &str| !(first && is_server_topic(name));
        match level {
            "#" => {
                self.message.iter().for_each(&mut *see);
                let children = self.children.iter().filter(|(name, _)| visible(name));
                children.for_each(|(_, child)| child.each(see));
            }
            "+" => {
                let children = self.children.iter().filter(|(name, _)| visible(name));
                children.for_each(|(_, child)| child.after_level(rest, see));
            }
            name => {
                if let Some(child) = self.children.get(name) {
                    child.after_level(rest, see);
                }
            }
        }
    }

    fn after_level<'a>(&'a self, rest: Option<&str>, see: &mut impl FnMut(&'a Arc<Message>)) {
        self.matching(rest, false, see);
    }
}

#[cfg(test)]
mod tests;
