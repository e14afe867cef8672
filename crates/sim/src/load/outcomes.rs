//! What became of every message of one device, as runs of sequence numbers.

use std::io;

/// How a message ended, as its sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Acked,
    Refused,
    /// Sent, never answered: it may be stored or not.
    Unknown,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Messages `first..=last` had the same outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub last: u64,
    pub outcome: Outcome,
}

/// The outcomes of one device's messages. Acks come in order, so runs are few.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    runs: Vec<Run>,
}

impl Outcomes {
    #[inline]
    pub(super) fn push(&mut self, seq: u64, outcome: Outcome) {
        match self.runs.last_mut() {
            Some(run) if run.outcome == outcome && run.last + 1 == seq => run.last = seq,
            _ => self.runs.push(Run { first: seq, last: seq, outcome }),
        }
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Writes lines `device,first,last,outcome`.
    pub fn write_csv(&self, device: &str, out: &mut impl io::Write) -> io::Result<()> {
        for Run { first, last, outcome } in &self.runs {
            writeln!(out, "{device},{first},{last},{}", outcome.word())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_the_same_outcome_are_one_line() {
        let mut outcomes = Outcomes::default();
        for (seq, outcome) in [
            (7, Outcome::Acked),
            (8, Outcome::Acked),
            (9, Outcome::Refused),
            (11, Outcome::Refused),
            (12, Outcome::Unknown),
        ] {
            outcomes.push(seq, outcome);
        }
        let mut out = Vec::new();
        outcomes.write_csv("d", &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "d,7,8,acked\nd,9,9,refused\nd,11,11,refused\nd,12,12,unknown\n"
        );
    }
}
