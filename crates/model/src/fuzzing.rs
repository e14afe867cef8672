//! What must hold for any bytes that are read as what the journal carries.

use std::fmt::Debug;

use crate::{
    AlertTransition, Event, Rejected,
    avro::{self, Datum},
};

/// The first byte says which type the rest is read as. What is understood is written, and read again, as the same.
pub fn records(data: &[u8]) {
    let Some((kind, datum)) = data.split_first() else { return };
    match kind % 4 {
        0 => telemetry(datum),
        1 => rare::<Event>(datum),
        2 => rare::<Rejected>(datum),
        _ => rare::<AlertTransition>(datum),
    }
}

fn telemetry(datum: &[u8]) {
    let Ok(record) = avro::decode(datum) else { return };
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    avro::encode(&record, &mut once);
    let again = avro::decode(&once).expect("what was written is read");
    assert_eq!(format!("{again:?}"), format!("{record:?}")); // By their words: NaN is not equal to itself.
    avro::encode(&again, &mut twice);
    assert_eq!(once, twice);
}

fn rare<T: Datum + Debug>(datum: &[u8]) {
    let Ok(value) = T::decode(datum) else { return };
    let again = T::decode(&value.encode()).expect("what was written is read");
    assert_eq!(format!("{again:?}"), format!("{value:?}"));
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_fuzzer_found_holds() {
    replay::replay("records", records);
}
