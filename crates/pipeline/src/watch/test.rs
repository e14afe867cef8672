//! What one test of a condition knows of one device.

use dunlin_model::{Timestamp, ValueRef};
use serde::{Deserialize, Serialize};

use super::{
    Ends, Fixed, Kind, Lengths, Moment, Stretch,
    phase::Verdict,
    window::{Session, Sliding},
};
use crate::rules::{Over, Scalar, Subject, Test, Threshold, fence::Position, number};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestState {
    pub(super) verdict: Verdict,
    /// What was last compared.
    pub(super) value: f64,
    memory: Memory,
}

/// What a test has to remember.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Memory {
    Nothing,
    /// The readings are in the device's window of this number.
    Window(u32),
    Sliding(Box<Sliding>),
    Session(Box<Session>),
    /// The reading before.
    Before(Option<(Timestamp, f64)>),
    /// When something last came.
    Heard(Option<Timestamp>),
    /// What the readings are, and since when.
    Same(Option<(Scalar, Timestamp)>),
    /// The last reading of each input.
    Last(Box<[Option<Scalar>]>),
    /// When the schedule next begins or ends; `None` before it was looked at.
    Schedule(Option<Timestamp>),
}

impl TestState {
    /// `window`: the number of the device's window that it reads, where it reads one.
    pub(super) fn new(test: &Test, window: u32) -> Self {
        let memory = match test {
            Test::Compare { subject: Subject::Reading { .. }, .. } => Memory::Nothing,
            Test::Compare { subject: Subject::Rate { .. }, .. } => Memory::Before(None),
            Test::Compare { subject: Subject::Window { over, .. }, .. } => match over {
                Over::Fixed { .. } => Memory::Window(window),
                Over::Sliding { .. } => Memory::Sliding(Box::default()),
                Over::Session { .. } => Memory::Session(Box::default()),
            },
            Test::NoData { .. } => Memory::Heard(None),
            Test::Stuck { .. } => Memory::Same(None),
            Test::Fence { .. } | Test::Expression(_) => {
                Memory::Last(vec![None; test.inputs().len()].into_boxed_slice())
            }
            Test::During(_) => Memory::Schedule(None),
        };
        Self { verdict: Verdict::Unknown, value: 0.0, memory }
    }

    /// Whether it can have been made for this test.
    pub(super) fn is_of(&self, test: &Test) -> bool {
        let fresh = Self::new(test, 0);
        std::mem::discriminant(&self.memory) == std::mem::discriminant(&fresh.memory)
            && match (&self.memory, &fresh.memory) {
                (Memory::Last(kept), Memory::Last(fresh)) => kept.len() == fresh.len(),
                _ => true,
            }
    }

    /// The number of the device's window that it reads.
    pub(super) fn window(&self) -> Option<u32> {
        match self.memory {
            Memory::Window(number) => Some(number),
            _ => None,
        }
    }

    pub(super) fn window_mut(&mut self) -> Option<&mut u32> {
        match &mut self.memory {
            Memory::Window(number) => Some(number),
            _ => None,
        }
    }

    /// Panes and readings that it keeps.
    pub(super) fn kept(&self) -> usize {
        match &self.memory {
            Memory::Sliding(window) => window.len(),
            Memory::Session(session) => session.len(),
            _ => 0,
        }
    }

    /// Takes in a reading of its input number `input`, or that a record came; the stretch of time about which it now
    /// says something, if it does.
    pub(super) fn take(
        &mut self,
        test: &Test,
        input: usize,
        time: Timestamp,
        value: Option<ValueRef<'_>>,
    ) -> Option<Stretch> {
        let at = Some(Stretch::at(time));
        match (test, &mut self.memory) {
            (Test::Compare { subject, threshold }, memory) => {
                let value = number(value?)?;
                let compared = match (subject, memory) {
                    (Subject::Reading { .. }, _) => value,
                    (Subject::Rate { per, .. }, Memory::Before(before)) => {
                        let (earlier, was) = before.replace((time, value))?;
                        let passed = time.since(earlier);
                        if passed.is_zero() {
                            return None;
                        }
                        (value - was) / passed.as_secs_f64() * per.as_secs_f64()
                    }
                    (Subject::Window { aggregate, over, .. }, memory) => match (over, memory) {
                        (Over::Sliding { size }, Memory::Sliding(window)) => {
                            window.add(*size, *aggregate, time, value)
                        }
                        (_, Memory::Session(session)) => {
                            session.add(time, value);
                            return None;
                        }
                        _ => return None,
                    },
                    _ => return None,
                };
                self.compare(threshold, compared);
                at
            }
            (Test::NoData { .. }, Memory::Heard(heard)) => {
                *heard = Some(time);
                (self.verdict, self.value) = (Verdict::Clear, 0.0);
                at
            }
            (Test::Stuck { after, .. }, Memory::Same(same)) => {
                let value = value?;
                let since = match same {
                    Some((is, since)) if is.borrowed() == value => *since,
                    _ => {
                        *same = Some((value.into(), time));
                        time
                    }
                };
                let stuck = time.since(since);
                self.value = stuck.as_secs_f64();
                self.verdict = if stuck >= *after { Verdict::Holds } else { Verdict::Clear };
                at
            }
            (Test::Fence { .. } | Test::Expression(_), Memory::Last(last)) => {
                if let (Some(last), Some(value)) = (last.get_mut(input), value) {
                    *last = Some(value.into());
                }
                at
            }
            _ => None,
        }
    }

    /// After all readings of a record: judges what looks at several of them.
    pub(super) fn settle(&mut self, test: &Test, time: Timestamp) {
        match (test, &mut self.memory) {
            (Test::Expression(expression), Memory::Last(last)) => {
                let holds = expression.holds(last);
                self.value = f64::from(u8::from(holds == Some(true)));
                self.verdict = match holds {
                    None => Verdict::Unknown,
                    Some(true) => Verdict::Holds,
                    Some(false) => Verdict::Clear,
                };
            }
            (Test::Fence { inside, shape, .. }, Memory::Last(last)) => {
                let degrees = |n: usize| last.get(n)?.as_ref()?.number();
                let position = degrees(0)
                    .zip(degrees(1))
                    .map(|(latitude, longitude)| Position { latitude, longitude })
                    .filter(Position::is_on_earth);
                let holds = position.map(|position| shape.holds(position) == *inside);
                self.value = f64::from(u8::from(holds == Some(true)));
                self.verdict = match holds {
                    None => Verdict::Unknown,
                    Some(true) => Verdict::Holds,
                    Some(false) => Verdict::Clear,
                };
            }
            (Test::During(schedule), Memory::Schedule(None)) => {
                self.verdict = if schedule.holds(time) { Verdict::Holds } else { Verdict::Clear };
                self.memory = Memory::Schedule(Some(schedule.next_change(time).unwrap_or(Timestamp::MAX)));
            }
            _ => {}
        }
    }

    /// When it next has something to say without a reading, and without the end of a window of the device that has
    /// something in it. `is_awaited`: somebody waits for what it says, so that silence counts too.
    pub(super) fn next(&self, test: &Test, is_awaited: bool, windows: &[Fixed]) -> Moment {
        let close = |end: Option<Timestamp>| Moment::new(end, Kind::Close);
        match (test, &self.memory) {
            (Test::Compare { subject: Subject::Window { over, .. }, .. }, memory) => match (over, memory) {
                (Over::Fixed { size, every }, Memory::Window(window))
                    if is_awaited && self.verdict != Verdict::Unknown =>
                {
                    close(windows[*window as usize].empty_end(Lengths::new(*size, *every)))
                }
                (Over::Session { gap }, Memory::Session(session)) => close(session.next_end(*gap)),
                _ => Moment::NEVER,
            },
            (Test::NoData { after, .. }, Memory::Heard(heard)) if self.verdict != Verdict::Holds => {
                Moment::new(heard.map(|heard| heard + *after), Kind::Timer)
            }
            (Test::During(_), Memory::Schedule(Some(change))) => {
                Moment::new(Some(*change).filter(|change| *change != Timestamp::MAX), Kind::Close)
            }
            _ => Moment::NEVER,
        }
    }

    /// At the moment that `next` named, or that a window of the device ended: the stretch of time about which it now
    /// says something.
    pub(super) fn pass(&mut self, test: &Test, moment: Moment, ends: Ends<'_>) -> Option<Stretch> {
        match (test, &mut self.memory) {
            (Test::Compare { subject: Subject::Window { aggregate, over, .. }, threshold }, memory) => {
                let ended = match (over, memory) {
                    (_, Memory::Window(window)) => ends.of(*window),
                    (Over::Session { gap }, Memory::Session(session)) => session.close(*gap),
                    _ => return None,
                };
                match ended {
                    Some(ended) => {
                        self.compare(threshold, ended.totals.result(*aggregate));
                        Some(ended.stretch)
                    }
                    // An empty window: what the last one said is no longer known.
                    None => {
                        self.verdict = Verdict::Unknown;
                        Some(Stretch::at(moment.time))
                    }
                }
            }
            (Test::NoData { after, .. }, Memory::Heard(Some(heard))) => {
                (self.verdict, self.value) = (Verdict::Holds, after.as_secs_f64());
                Some(Stretch { start: *heard, end: moment.time })
            }
            (Test::During(schedule), Memory::Schedule(change)) => {
                self.verdict = if schedule.holds(moment.time) { Verdict::Holds } else { Verdict::Clear };
                *change = Some(schedule.next_change(moment.time).unwrap_or(Timestamp::MAX));
                Some(Stretch::at(moment.time))
            }
            _ => None,
        }
    }

    fn compare(&mut self, threshold: &Threshold, value: f64) {
        (self.value, self.verdict) = (value, Verdict::of(threshold, value));
    }
}
