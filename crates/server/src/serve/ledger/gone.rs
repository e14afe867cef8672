//! Records of the journal that the store never read: retention had taken them when the store was dropped and read the
//! journal again, or was put back from an old copy. Kept in `DATA/ledger.json`, because nobody can tell afterwards.

use std::{collections::BTreeMap, fs, io, io::Write, path::Path};

use dunlin_journal::{Journal, Partition, Topic};
use dunlin_model::chain;
use dunlin_tsdb::Tsdb;
use serde::{Deserialize, Serialize};

use super::partitions;
use crate::exit::Failure;

const FILE: &str = "ledger.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gone {
    /// By partition of telemetry: from the position at which the store missed them, to the oldest record that was
    /// there.
    gaps: BTreeMap<u16, BTreeMap<u64, u64>>,
}

impl Gone {
    /// What is known and what shows now, before the store reads on.
    pub(super) fn open(data: &Path, journal: &dyn Journal, tsdb: &dyn Tsdb) -> Result<Self, Failure> {
        let failed = |what: &str, error: &dyn std::error::Error| {
            Failure::Failed(format!("{what} {}: {}", data.join(FILE).display(), chain(error)))
        };
        let known: Self = match fs::read(data.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed("read", &error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(failed("read", &error)),
        };
        let mut gone = known.clone();
        for at in partitions(journal) {
            let position = tsdb.position(at).map(|offset| offset.0);
            gone.look(at, position, journal.extent(at).oldest.0);
        }
        if gone != known {
            gone.write(data).map_err(|error| failed("write", &error))?;
        }
        Ok(gone)
    }

    /// The same look twice is one gap: a start may be cut short before the store goes on.
    fn look(&mut self, at: Partition, position: Option<u64>, oldest: u64) {
        let gaps = self.gaps.entry(at.index).or_default();
        match position {
            // A new store: what an earlier one missed is not its affair.
            None => gaps.clear(),
            // Put back to before a gap, it will meet that again.
            Some(position) => _ = gaps.split_off(&position),
        }
        let position = position.unwrap_or(0);
        if position < oldest {
            gaps.insert(position, oldest);
        }
        self.gaps.retain(|_, gaps| !gaps.is_empty());
    }

    pub(super) fn records(&self) -> u64 {
        self.gaps.values().flatten().map(|(from, to)| to - from).sum()
    }

    /// Those that lie behind the store by now.
    pub(super) fn passed(&self, tsdb: &dyn Tsdb) -> u64 {
        let passed = |(index, gaps): (&u16, &BTreeMap<u64, u64>)| {
            let position =
                tsdb.position(Partition::new(Topic::Telemetry, *index)).map_or(0, |offset| offset.0);
            gaps.range(..position).map(|(from, to)| to - from).sum::<u64>()
        };
        self.gaps.iter().map(passed).sum()
    }

    /// There as a whole or not at all.
    fn write(&self, data: &Path) -> io::Result<()> {
        let unfinished = data.join(FILE).with_extension("json.new");
        let mut out = fs::File::create(&unfinished)?;
        out.write_all(&serde_json::to_vec(self)?)?;
        out.sync_all()?;
        fs::rename(unfinished, data.join(FILE))?;
        fs::File::open(data)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_counts_once_and_a_new_store_forgets_those_of_the_old() {
        let at = Partition::new(Topic::Telemetry, 1);
        let mut gone = Gone::default();
        let mut look = |position, oldest| {
            gone.look(at, position, oldest);
            gone.records()
        };
        assert_eq!(look(None, 0), 0);
        assert_eq!(look(Some(500), 200), 0);
        // Dropped; the start is cut short once.
        assert_eq!(look(None, 300), 300);
        assert_eq!(look(None, 300), 300);
        assert_eq!(look(Some(900), 300), 300);
        // Retention passed it, which only a store from elsewhere lets it do.
        assert_eq!(look(Some(950), 1_000), 350);
        assert_eq!(look(Some(950), 1_000), 350);
        assert_eq!(look(Some(1_200), 1_000), 350);
        // Put back to an older copy, from before the second gap.
        assert_eq!(look(Some(920), 1_000), 380);
        assert_eq!(look(None, 1_000), 1_000);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = std::env::temp_dir().join(format!("dunlin-gone-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let gone = Gone { gaps: BTreeMap::from([(3, BTreeMap::from([(0, 7)]))]) };
        gone.write(&dir).unwrap();
        let read: Gone = serde_json::from_slice(&fs::read(dir.join(FILE)).unwrap()).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((read.records(), read), (7, gone));
    }
}
