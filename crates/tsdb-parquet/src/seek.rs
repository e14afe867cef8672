//! Is this row in a file? Asked for late rows only. The fingerprints of a row group are read once and kept, within a
//! bound; the group is found by the bounds of its devices and times.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType},
};
use dunlin_model::{Timestamp, ValueRef};
use dunlin_tsdb::StoreError;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    file::{metadata::RowGroupMetaData, statistics::Statistics},
};

use crate::{
    columns::{Column, KEYS, OTHER, metric_hash, schema_of_file},
    encode::conform,
    files::DataFile,
    identity,
};

/// Files whose footers are kept.
const FOOTERS_MAX: usize = 2_048;

#[derive(Debug)]
pub(crate) struct Seek {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    prints: HashMap<(u64, usize), Arc<[u64]>>,
    prints_order: VecDeque<(u64, usize)>,
    bytes: usize,
    footers: HashMap<u64, Arc<Footer>>,
    footers_order: VecDeque<u64>,
}

#[derive(Debug)]
struct Footer {
    metadata: ArrowReaderMetadata,
    groups: Vec<Bounds>,
}

/// `None`: not known, so it may hold anything.
#[derive(Debug)]
struct Bounds {
    devices: Option<(Vec<u8>, Vec<u8>)>,
    times: Option<(i64, i64)>,
}

impl Seek {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::default() }
    }

    pub(crate) fn holds(
        &self,
        file: &DataFile,
        columns: &[Column],
        device: &str,
        time: Timestamp,
        print: u64,
    ) -> Result<bool, StoreError> {
        let footer = self.footer(file)?;
        for (group, bounds) in footer.groups.iter().enumerate() {
            if bounds.may_hold(device, time)
                && self.prints(file, &footer, group, columns)?.binary_search(&print).is_ok()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn footer(&self, file: &DataFile) -> Result<Arc<Footer>, StoreError> {
        if let Some(footer) = self.kept().footers.get(&file.entry.id) {
            return Ok(footer.clone());
        }
        let footer = Arc::new(Footer::read(file)?);
        let mut kept = self.kept();
        kept.footers.insert(file.entry.id, footer.clone());
        kept.footers_order.push_back(file.entry.id);
        while kept.footers_order.len() > FOOTERS_MAX {
            let oldest = kept.footers_order.pop_front();
            oldest.map(|oldest| kept.footers.remove(&oldest));
        }
        Ok(footer)
    }

    fn prints(
        &self,
        file: &DataFile,
        footer: &Footer,
        group: usize,
        columns: &[Column],
    ) -> Result<Arc<[u64]>, StoreError> {
        let key = (file.entry.id, group);
        if let Some(prints) = self.kept().prints.get(&key) {
            return Ok(prints.clone());
        }
        let prints: Arc<[u64]> = read_prints(file, footer, group, columns)?.into();
        let mut kept = self.kept();
        kept.bytes += size_of_val(&*prints);
        kept.prints.insert(key, prints.clone());
        kept.prints_order.push_back(key);
        while kept.bytes > self.bytes_max
            && let Some(oldest) = kept.prints_order.pop_front()
        {
            kept.bytes -= kept.prints.remove(&oldest).map_or(0, |prints| size_of_val(&*prints));
        }
        Ok(prints)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Footer {
    fn read(file: &DataFile) -> Result<Self, StoreError> {
        let open = File::open(&file.path).map_err(|source| unreadable(file, source))?;
        let metadata = ArrowReaderMetadata::load(&open, ArrowReaderOptions::new())
            .map_err(|error| damaged(file, error))?;
        let micros = match metadata.schema().field(1).data_type() {
            DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000,
            _ => 1,
        };
        let groups = metadata.metadata().row_groups().iter().map(|group| Bounds::of(group, micros)).collect();
        Ok(Self { metadata, groups })
    }
}

impl Bounds {
    fn of(group: &RowGroupMetaData, micros: i64) -> Self {
        let devices = group.column(0).statistics().and_then(|statistics| {
            Some((statistics.min_bytes_opt()?.to_vec(), statistics.max_bytes_opt()?.to_vec()))
        });
        let times = match group.column(1).statistics() {
            Some(Statistics::Int64(times)) => times.min_opt().zip(times.max_opt()),
            _ => None,
        };
        Self {
            devices,
            times: times.map(|(min, max)| (min.saturating_mul(micros), max.saturating_mul(micros))),
        }
    }

    fn may_hold(&self, device: &str, time: Timestamp) -> bool {
        let (device, time) = (device.as_bytes(), time.as_micros());
        self.times.is_none_or(|(min, max)| time >= min && time <= max)
            && self.devices.as_ref().is_none_or(|(min, max)| device >= &**min && device <= &**max)
    }
}

/// The fingerprints of a row group, sorted.
fn read_prints(
    file: &DataFile,
    footer: &Footer,
    group: usize,
    columns: &[Column],
) -> Result<Vec<u64>, StoreError> {
    let open = File::open(&file.path).map_err(|source| unreadable(file, source))?;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(open, footer.metadata.clone())
        .with_row_groups(vec![group])
        .build()
        .map_err(|error| damaged(file, error))?;
    let mut prints = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| damaged(file, error))?;
        prints.extend(batch_prints(&batch, columns)?.into_iter().filter(|print| *print != identity::NEVER));
    }
    prints.sort_unstable();
    Ok(prints)
}

fn batch_prints(batch: &RecordBatch, columns: &[Column]) -> Result<Vec<u64>, StoreError> {
    let batch = conform(batch, &schema_of_file(columns, batch.schema_ref()))?;
    let devices = batch.column(0).as_string_view();
    let times = batch.column(1).as_primitive::<TimestampMicrosecondType>().values();
    let mut prints = Vec::with_capacity(batch.num_rows());
    let mut last = ("", identity::name(""));
    for (row, time) in times.iter().enumerate() {
        let device = devices.value(row);
        if device != last.0 {
            last = (device, identity::name(device));
        }
        prints.push(identity::row(last.1, Timestamp::from_micros(*time)));
    }
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()).skip(KEYS) {
        if field.name() == OTHER {
            for (row, print) in prints.iter_mut().enumerate().filter(|(row, _)| array.is_valid(*row)) {
                *print = print.wrapping_add(crate::columns::other_print(array.as_string_view().value(row)));
            }
            continue;
        }
        let Some(metric) = metric_hash(columns, field.name()) else { continue };
        for (row, print) in prints.iter_mut().enumerate().filter(|(row, _)| array.is_valid(*row)) {
            let value = match field.data_type() {
                DataType::Float64 => ValueRef::F64(array.as_primitive::<Float64Type>().value(row)),
                DataType::Int64 => ValueRef::I64(array.as_primitive::<Int64Type>().value(row)),
                DataType::Boolean => ValueRef::Bool(array.as_boolean().value(row)),
                _ => ValueRef::Text(array.as_string_view().value(row)),
            };
            *print = print.wrapping_add(identity::reading(metric, value));
        }
    }
    let received = batch.column(2);
    for (row, print) in prints.iter_mut().enumerate() {
        *print = if received.is_null(row) { identity::NEVER } else { identity::seal(*print) };
    }
    Ok(prints)
}

pub(crate) fn unreadable(file: &DataFile, source: std::io::Error) -> StoreError {
    StoreError::Read { path: file.path.clone(), source }
}

pub(crate) fn damaged(file: &DataFile, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: file.path.clone(), reason: error.to_string() }
}
