use dunlin_model::{Timestamp, Value, ValueRef};

/// The newest value of every metric of one device.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    values: Vec<(u32, Timestamp, Value)>,
    /// Whether it knows of all rows of the device, also of those from before the store was opened.
    pub(crate) complete: bool,
}

impl Newest {
    pub(crate) fn new(complete: bool) -> Self {
        Self { values: Vec::new(), complete }
    }

    /// Takes the reading that is the `position`th of its row, unless a newer one is known.
    pub(crate) fn take(&mut self, position: usize, metric: u32, time: Timestamp, value: ValueRef<'_>) {
        let at = match self.values.get(position) {
            Some((of, ..)) if *of == metric => Some(position),
            _ => self.values.iter().position(|(of, ..)| *of == metric),
        };
        match at {
            Some(at) if time >= self.values[at].1 => {
                self.values[at].1 = time;
                assign(&mut self.values[at].2, value);
            }
            Some(_) => {}
            None => self.values.push((metric, time, value.to_owned())),
        }
    }

    /// Takes a reading that was stored before those it knows: at the same time, the known one stays.
    pub(crate) fn take_older(&mut self, position: usize, metric: u32, time: Timestamp, value: ValueRef<'_>) {
        if !self.values.iter().any(|(of, known, _)| *of == metric && *known >= time) {
            self.take(position, metric, time, value);
        }
    }

    pub(crate) fn values(&self) -> &[(u32, Timestamp, Value)] {
        &self.values
    }
}

/// Keeps the text's allocation when nothing changed.
fn assign(to: &mut Value, value: ValueRef<'_>) {
    match (&*to, value) {
        (Value::Text(old), ValueRef::Text(new)) if **old == *new => {}
        _ => *to = value.to_owned(),
    }
}
